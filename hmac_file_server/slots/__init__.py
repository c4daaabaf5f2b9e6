"""What the XMPP server signed: the slot's path, length and type."""
