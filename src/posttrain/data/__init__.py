"""Rows of data: reading, preparing and rendering them to token ids."""
