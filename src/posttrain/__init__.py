"""Post-training of language models: readable, offline, exact."""
