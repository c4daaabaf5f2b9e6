"""Files on a local or mounted file system, at the path of their URL."""
