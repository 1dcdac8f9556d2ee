"""Returns a number of 40 MB."""

# task: total


def total(numbers):
    return 1 << (40 << 23)
