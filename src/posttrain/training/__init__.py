"""Layer 9: the training loop, its optimiser, checkpoints and sharding."""
