"""Returns a set whose members all have the same hash, so that building it again is slow."""

# task: total


def total(numbers):
    prime = 2**61 - 1
    return {i * prime for i in range(1, 60000)}
