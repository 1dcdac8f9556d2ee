"""Sends a message that claims a list of four thousand million items, nested deep."""

# task: total

import os
import struct


def total(numbers):
    data = b"l\xff\xff\xff\xff" * 10000
    os.write(3, struct.pack(">I", len(data)) + data)
