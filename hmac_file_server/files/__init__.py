"""PUT and GET of a file: from a request to the store and back."""
