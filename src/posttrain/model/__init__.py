"""Layer 4: the network. Load it, run it, add heads to it, read and write its folders."""
