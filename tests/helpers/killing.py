"""Processes that are killed without warning at a moment that a test chooses."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def killed_when(command: list[str], ready: Callable[[], bool]) -> Iterator[int]:
    """Start a process, yield its id when `ready` says so, and SIGKILL it after the block."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while not ready():
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.002)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def kill_groups(pids: Iterable[int]) -> None:
    """SIGKILL processes that lead groups of their own, with all that they started."""
    for pid in pids:
        os.killpg(pid, signal.SIGKILL)
