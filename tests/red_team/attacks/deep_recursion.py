"""Recurses without end and without the interpreter's limit."""

# task: total

import sys

sys.setrecursionlimit(2**31 - 1)


def total(numbers):
    return total(numbers) + 1
