"""Several runs as one job: a list of models, a grid of values, or a search for the best ones."""
