"""Summaries of files of lines that grow, kept up to date without reading anything twice.

A large file is read in parts by a process of its own, so that the page stays responsive.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

log = logging.getLogger(__name__)

AT_ONCE = 4 << 20  # bytes that are read while a request waits
PART = 64 << 20  # bytes that the other process reads before it returns the summary
TAIL = 80  # bytes that tell a file from another: the end of a line, with its values
KEPT = 48  # summaries that are kept: those asked for last

Lines = list[tuple[int, bytes]]
"""Offset and text of each line."""


class Summary(Protocol):
    """What is kept of a file; it does not grow much with the file."""

    offset: int
    """Bytes that it covers."""
    tail: bytes
    """The last of these, which tell the file from another one under its name."""

    def add(self, lines: Lines) -> None:
        """Take in the next lines."""


S = TypeVar("S", bound=Summary)


def lines_from(file: Path, start: int, num_bytes: int) -> tuple[Lines, int]:
    """Return the complete lines from an offset on, of about that many bytes, and where they end.

    A last line without its newline is left for later: a run is writing it. A line that is longer
    than `num_bytes` is read whole.
    """
    with file.open("rb") as handle:
        handle.seek(start)
        data = handle.read(num_bytes)
        while data and b"\n" not in data:
            more = handle.read(num_bytes)
            if not more:
                return [], start
            data += more
    end = data.rfind(b"\n") + 1
    lines, offset = [], start
    for line in data[:end].split(b"\n")[:-1]:
        lines.append((offset, line))
        offset += len(line) + 1
    return lines, start + end


def advance(file: Path, summary: S, num_bytes: int) -> S:
    """Return the summary with about `num_bytes` more of its file."""
    lines, end = lines_from(file, summary.offset, num_bytes)
    summary.add(lines)
    if lines:
        summary.offset, summary.tail = end, lines[-1][1][-TAIL:] + b"\n"
    return summary


@dataclass
class Entry(Generic[S]):
    """A file's summary, and the part that is being added to it elsewhere."""

    inode: int
    summary: S
    size: int = -1
    """The file's bytes when it was last read to its end; what remained then is half a line."""
    task: Future[S] | None = None
    begun_at: int = 0
    """The file's bytes when the task began."""


class Workers:
    """One process that reads large files; it starts with the first of them."""

    def __init__(self) -> None:
        self.pool: ProcessPoolExecutor | None = None
        self.closed = False
        self.lock = threading.Lock()

    def submit(self, call: Callable[..., S], *args: object) -> Future[S]:
        """Return the future of a call in the other process."""
        with self.lock:
            try:
                if self.pool is not None:
                    return self.pool.submit(call, *args)
            except BrokenProcessPool:
                pass  # it was killed: another takes its place
            self.pool = ProcessPoolExecutor(1, get_context("spawn"), _begin)
            return self.pool.submit(call, *args)

    def close(self) -> None:
        """End the process."""
        self.closed = True
        if self.pool is not None:
            for process in list(getattr(self.pool, "_processes", {}).values()):
                process.terminate()
            self.pool.shutdown(wait=False, cancel_futures=True)


def _begin() -> None:
    """Prepare the process that reads: it gives way to others, and ends with the board alone."""
    os.nice(5)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too: the board ends it

    def follow() -> None:
        if (board := parent_process()) is not None:
            board.join()  # a board that is killed ends nobody
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class Summaries(Generic[S]):
    """The summaries of many files, each up to date as of the last look at it."""

    def __init__(self, make: Callable[[], S], workers: Workers) -> None:
        self.make, self.workers = make, workers
        self.entries: OrderedDict[Path, Entry[S]] = OrderedDict()
        self.lock = threading.RLock()

    def look(self, file: Path) -> tuple[S, float]:
        """Return a file's summary and the share of the file that it covers, 1 if all of it.

        The next look may change the summary. A file that is shorter than it was, or another one
        under the same name, is read from its start: its run has been resumed, or made again.
        """
        with self.lock:
            status = file.stat()
            entry = self.entries.get(file)
            if entry is not None:
                self._collect(file, entry)
            if entry is None or is_another(file, status, entry):
                entry = self.entries[file] = Entry(status.st_ino, self.make())
            self.entries.move_to_end(file)
            while len(self.entries) > KEPT:
                self.entries.popitem(last=False)
            left = status.st_size - entry.summary.offset
            if entry.task is None and status.st_size != entry.size:
                if left > AT_ONCE:
                    self._start(file, entry, status.st_size)
                else:
                    entry.summary = advance(file, entry.summary, left)
                    entry.size = status.st_size
            done = entry.task is None and status.st_size == entry.size
            return entry.summary, 1.0 if done else entry.summary.offset / status.st_size

    def _start(self, file: Path, entry: Entry[S], size: int) -> None:
        entry.begun_at = size
        entry.task = self.workers.submit(advance, file, entry.summary, PART)
        entry.task.add_done_callback(lambda task: self._continue(file, entry))

    def _continue(self, file: Path, entry: Entry[S]) -> None:
        """Read the next part at once, since nobody may look for a while."""
        with self.lock:
            if self.entries.get(file) is not entry or not self._collect(file, entry):
                return
            try:
                status = file.stat()
                left = status.st_size - entry.summary.offset
                if left > AT_ONCE and entry.inode == status.st_ino:
                    self._start(file, entry, status.st_size)
            except (OSError, RuntimeError):
                return  # the file is gone, or the server is ending: the next look says so

    def _collect(self, file: Path, entry: Entry[S]) -> bool:
        """Take over what the other process has read, and return whether it came further.

        If not, only a look goes on: a file that nobody can read would be tried without end.
        """
        if entry.task is None or not entry.task.done():
            return False
        task, entry.task = entry.task, None
        if task.cancelled():
            return False
        if (error := task.exception()) is not None:
            if self.workers.closed:
                return False
            log.warning("%s could not be read: %s", file, error)
            return False
        before, entry.summary = entry.summary.offset, task.result()
        if entry.summary.offset == before:
            entry.size = entry.begun_at  # all that is left is half a line
        return entry.summary.offset > before


def is_another(file: Path, status: os.stat_result, entry: Entry[Any]) -> bool:
    """Return whether a file is not the one that was read.

    A new file may have the number of one that was deleted, so the end of what was read is compared.
    """
    offset, tail = entry.summary.offset, entry.summary.tail
    if entry.inode != status.st_ino or status.st_size < offset:
        return True
    if status.st_size == entry.size:
        return False
    with file.open("rb") as handle:
        handle.seek(offset - len(tail))
        return bool(handle.read(len(tail)) != tail)


def lines_at(file: Path, offsets: list[int]) -> Iterator[bytes]:
    """Yield the line that begins at each offset."""
    with file.open("rb") as handle:
        for offset in offsets:
            handle.seek(offset)
            yield handle.readline()
