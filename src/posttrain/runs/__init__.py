"""Layer 12: runs, from a recipe to the run directory, and the code behind the other commands."""
