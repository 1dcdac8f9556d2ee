"""Data sets that posttrain generates itself."""
