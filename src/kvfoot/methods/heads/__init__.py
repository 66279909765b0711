"""Methods that give KV heads static roles."""
