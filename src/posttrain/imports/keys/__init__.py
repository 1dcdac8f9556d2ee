"""Keys of the frameworks that need no code: patterns of names, and why they have no counterpart."""
