"""Layer 12: the command line."""
