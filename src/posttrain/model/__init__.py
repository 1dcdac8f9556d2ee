"""Layer 4: the network. Load it, run it, add to it, read and write its folders."""
