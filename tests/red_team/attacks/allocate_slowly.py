"""Allocates until there is no more."""

# task: total


def total(numbers):
    kept = []
    while True:
        kept.append(bytearray(1 << 20))
