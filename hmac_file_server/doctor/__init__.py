"""What ``hmac-file-server doctor`` tests of a deployment, through its public URL."""
