"""Layer 1: the base of a recipe's sections, which are declared beside the code that reads them."""
