"""Where a run's numbers go: metrics.jsonl is the source of truth, and every other view reads it."""
