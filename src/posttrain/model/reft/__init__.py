"""ReFT: low-rank edits of hidden states at positions of the prompt (Wu, Arora et al. 2024)."""
