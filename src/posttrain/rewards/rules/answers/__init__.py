"""How the answers of the math reward are found, read and compared."""
