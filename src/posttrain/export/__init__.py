"""Layer 13: trained models as folders and files that other programs read."""
