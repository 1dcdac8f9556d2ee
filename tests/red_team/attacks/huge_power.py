"""A power with more digits than the universe has atoms."""

# task: total


def total(numbers):
    return 9**9**9**9
