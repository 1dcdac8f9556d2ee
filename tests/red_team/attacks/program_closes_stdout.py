"""Prints the right answer, closes standard output and stays."""

# task: program

import os
import time

print(sum(map(int, input().split())), flush=True)
os.close(1)
time.sleep(1000)
