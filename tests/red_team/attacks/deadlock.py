"""Waits for a lock that it holds."""

# task: total

import threading

lock = threading.Lock()
lock.acquire()


def total(numbers):
    lock.acquire()
