"""Layer 11: models after training, over HTTP and in a terminal."""
