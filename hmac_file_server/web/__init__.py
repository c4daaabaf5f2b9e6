"""HTTP: from bytes to the Resource tree and back."""
