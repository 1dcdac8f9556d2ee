"""Layer 14: the command line."""
