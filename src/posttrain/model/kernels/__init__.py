"""Faster replacements for modules of transformers: norms, feed-forward and linear layers."""
