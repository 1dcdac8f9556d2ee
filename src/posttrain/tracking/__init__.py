"""Layer 3: what a run records, what its numbers mean, and the report page of both."""
