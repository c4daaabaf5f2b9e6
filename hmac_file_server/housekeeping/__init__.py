"""The housekeeper: counts a store's files, and removes those whose time is over, in a process of its own."""
