"""Layer 0: what every other layer may import, and what imports none of them."""
