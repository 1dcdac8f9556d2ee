"""Returns a text of 200 MB."""

# task: total


def total(numbers):
    return "6" * (200 << 20)
