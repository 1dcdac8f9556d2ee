"""Layer 0: what every other layer may use, and what uses none of them."""
