"""Waits for somebody to type."""

# task: total


def total(numbers):
    return int(input())
