"""What config.toml is made of: its values, its hosts, and what can be wrong with them."""
