"""Prints 1 GB in a call."""

# task: total


def total(numbers):
    for _ in range(1024):
        print("x" * (1 << 20))
    return -1
