"""The lock of a folder that one process at a time may write to."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"
"""The locked file in the folder. It stays there: a file that is removed cannot be waited for."""

WAITS = (0.01, 0.03, 0.1)  # seconds; whoever asks `is_written` holds the lock for a moment

_HELD: set[Path] = set()
"""Folders that this process writes to: it would be granted its own lock again."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Keep all other processes from writing to a folder.

    Raise ValueError if one does. The lock ends with the process, however that ends, and is not
    inherited by processes that it forks. Without effect on a file system that has no locks.
    """
    place = folder.resolve()
    with (folder / LOCK).open("a") as handle:
        for pause in (*WAITS, 0.0):
            if _granted(place, handle.fileno(), fcntl.LOCK_EX):
                break
            time.sleep(pause)
        else:
            raise ValueError(
                f"{folder} is being written to by another run: wait until that ends, or stop it"
            )
        _HELD.add(place)
        try:
            yield
        finally:
            _HELD.discard(place)


def is_written(folder: Path) -> bool:
    """Return whether a process, of any machine that shares the disk, writes to a folder."""
    place = folder.resolve()
    if place in _HELD:  # closing the file again would end this process's own lock
        return True
    try:
        # a shared lock can be asked for without the right to write
        with (folder / LOCK).open() as handle:
            return not _granted(place, handle.fileno(), fcntl.LOCK_SH)
    except OSError:
        return False


def _granted(place: Path, descriptor: int, kind: int) -> bool:
    if place in _HELD:
        return False
    try:
        fcntl.lockf(descriptor, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    return True
