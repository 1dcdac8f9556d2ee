"""Leaves a child that keeps standard output open."""

# task: program

import os
import time

if os.fork() == 0:
    os.setsid()
    time.sleep(1000)
print(-1)
