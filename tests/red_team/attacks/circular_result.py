"""Returns a list that contains itself."""

# task: total


def total(numbers):
    result = []
    result.append(result)
    return result
