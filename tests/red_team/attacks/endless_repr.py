"""Raises an exception whose text takes for ever."""

# task: total


class Slow(Exception):
    def __str__(self):
        while True:
            pass


def total(numbers):
    raise Slow
