"""Allocates 10 GB at once."""

# task: total


def total(numbers):
    return len(bytearray(10 << 30))
