"""Allocates 10 GB."""

# task: program

print(len(bytearray(10 << 30)))
