"""An object whose deletion never ends."""

# task: total

import time


class Heavy:
    def __del__(self):
        time.sleep(10**6)


def total(numbers):
    Heavy()
    return 6
