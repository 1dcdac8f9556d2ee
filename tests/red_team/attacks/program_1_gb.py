"""Prints 1 GB."""

# task: program

for _ in range(1024):
    print("x" * (1 << 20))
