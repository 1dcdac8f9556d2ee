"""Returns a list nested ten thousand deep."""

# task: total


def total(numbers):
    result = []
    for _ in range(10**4):
        result = [result]
    return result
