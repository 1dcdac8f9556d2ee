"""The board: a local web page over run directories."""
