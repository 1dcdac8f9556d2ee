"""One model on several ranks: parts of its matrices (tensor) or of its rows (sequence)."""
