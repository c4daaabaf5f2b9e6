"""The ``hmac-file-server`` command: one module for each subcommand, and what they share."""
