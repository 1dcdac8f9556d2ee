"""Layer 8: rollouts. Sample completions from the policy, score them, and batch them."""
