"""From the network to the store: chunks, back-pressure and retries."""
