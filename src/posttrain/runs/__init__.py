"""Layer 11: runs, from a recipe to the run directory, and the other work behind the commands."""
