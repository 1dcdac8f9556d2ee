"""Replaces itself by an interpreter that runs for ever."""

# task: total

import os
import sys


def total(numbers):
    os.execv(sys.executable, [sys.executable, "-S", "-c", "while True: pass"])
