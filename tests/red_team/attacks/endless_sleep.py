"""Uses no processor time and never returns."""

# task: total

import time


def total(numbers):
    time.sleep(10**6)
