"""Writes to standard error without end."""

# task: total

import os


def total(numbers):
    while True:
        os.write(2, b"x" * 65536)
