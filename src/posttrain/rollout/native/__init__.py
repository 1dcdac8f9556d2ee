"""The native sampler: batched generation with the policy's own network."""
