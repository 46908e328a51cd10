"""Load on the running service: what it gives, what it takes, where it breaks."""
