"""The child prints PASS and the parent waits for ever."""

# task: total

import os
import time

if os.fork():
    time.sleep(1000)
print("PASS", flush=True)
