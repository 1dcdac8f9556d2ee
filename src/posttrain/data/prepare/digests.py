"""Equal rows among very many, found with digests on disk.

A row takes 24 bytes on disk (a 16-byte digest and its number), in one of 256 files chosen by the
digest, and one byte in memory: its outcome. Equal digests are in the same file, so one file at a
time is enough.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

TRAIN, VALIDATION, DUPLICATE, EMPTY, OVERLAPPING, IN_BOTH = range(6)
"""The outcome of a row: the part that it goes to, or why it is dropped."""
NUM_FILES = 256
BUFFER = 2**20


@dataclass
class Digests:
    """Digests of rows 0, 1, 2, ... in a folder."""

    folder: Path
    pending: bytearray = field(default_factory=bytearray)
    num_written: int = 0

    def add(self, content: bytes) -> None:
        """Add the digest of the next row."""
        self.pending += hashlib.blake2b(content, digest_size=16).digest()
        if len(self.pending) >= BUFFER:
            self.flush()

    def flush(self) -> None:
        """Append the pending digests to the files."""
        digests = np.frombuffer(bytes(self.pending), "<u8").reshape(-1, 2)
        numbers = np.arange(self.num_written, self.num_written + len(digests), dtype="<u8")
        records = np.column_stack([digests, numbers])
        self.folder.mkdir(exist_ok=True)
        for index in range(NUM_FILES):
            with (self.folder / f"{index:03}").open("ab") as file:
                file.write(records[digests[:, 0] % NUM_FILES == index].tobytes())
        self.num_written += len(digests)
        self.pending.clear()

    def equal(self, outcomes: Any) -> Iterator[tuple[Any, Any]]:
        """Yield for each file its kept rows' numbers [N], and where each one's first equal is [N].

        Equal rows are adjacent, those of the training part first.
        """
        self.flush()
        for file in sorted(self.folder.iterdir()):
            high, low, rows = np.fromfile(file, "<u8").reshape(-1, 3).T
            kept = outcomes[rows] <= VALIDATION
            high, low, rows = high[kept], low[kept], rows[kept]
            order = np.lexsort((rows, outcomes[rows], low, high))
            high, low, rows = high[order], low[order], rows[order]
            begins = np.ones(len(rows), dtype=bool)
            begins[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
            yield rows, np.maximum.accumulate(np.where(begins, np.arange(len(rows)), 0))


def drop_duplicates(rows: Digests, outcomes: Any) -> None:
    """Keep one of equal rows, in the training part if one of them is there.

    `outcomes` [N] uint8 is changed in place, here and below.
    """
    for numbers, first in rows.equal(outcomes):
        outcomes[numbers[first != np.arange(len(numbers))]] = DUPLICATE


def drop_prompts_of_both(prompts: Digests, outcomes: Any) -> None:
    """Drop validation rows whose prompt is also in the training part."""
    for numbers, first in prompts.equal(outcomes):
        parts = outcomes[numbers]
        outcomes[numbers[parts != parts[first]]] = IN_BOTH
