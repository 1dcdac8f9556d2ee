"""Stops itself."""

# task: program

import os

os.kill(os.getpid(), 19)
