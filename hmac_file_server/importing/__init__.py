"""Taking over the files of other servers: how they lay them out, and what becomes of each."""
