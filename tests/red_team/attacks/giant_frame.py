"""Announces a message of 4 GB."""

# task: total

import os


def total(numbers):
    os.write(3, b"\xff\xff\xff\xff")
    while True:
        os.write(3, bytes(65536))
