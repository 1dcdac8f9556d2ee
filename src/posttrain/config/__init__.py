"""Layer 1: what every section of a recipe is made of; the sections lie beside their readers."""
