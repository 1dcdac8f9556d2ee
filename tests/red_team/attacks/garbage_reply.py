"""Sends random bytes as a reply."""

# task: total

import os
import random
import struct


def total(numbers):
    data = random.Random(0).randbytes(1000)
    os.write(3, struct.pack(">I", len(data)) + data)
