"""Which of very many rows are equal, with their digests on disk.

A row has 24 bytes there (a digest of 16, its number), in one of 256 files by its digest, and one
byte in memory: its fate. Equal digests lie in one file, so the files are looked at one by one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

TRAIN, VALIDATION, DUPLICATE, EMPTY, OVERLAPPING, IN_BOTH = range(6)
"""The fates of a row: where it goes, or why it is dropped."""
NUM_FILES = 256
BUFFER = 2**20


@dataclass
class Digests:
    """Digests of rows 0, 1, 2, ... in a folder of its own."""

    folder: Path
    pending: bytearray = field(default_factory=bytearray)
    num_written: int = 0

    def add(self, content: bytes) -> None:
        self.pending += hashlib.blake2b(content, digest_size=16).digest()
        if len(self.pending) >= BUFFER:
            self.flush()

    def flush(self) -> None:
        digests = np.frombuffer(bytes(self.pending), "<u8").reshape(-1, 2)
        numbers = np.arange(self.num_written, self.num_written + len(digests), dtype="<u8")
        records = np.column_stack([digests, numbers])
        self.folder.mkdir(exist_ok=True)
        for place in range(NUM_FILES):
            with (self.folder / f"{place:03}").open("ab") as file:
                file.write(records[digests[:, 0] % NUM_FILES == place].tobytes())
        self.num_written += len(digests)
        self.pending.clear()

    def equal(self, fates: Any) -> Iterator[tuple[Any, Any]]:
        """Of each file: the numbers of the rows that are still kept, equal ones together with those
        of the training part first [N], and for each the place of the first that equals it [N]."""
        self.flush()
        for file in sorted(self.folder.iterdir()):
            high, low, rows = np.fromfile(file, "<u8").reshape(-1, 3).T
            kept = fates[rows] <= VALIDATION
            high, low, rows = high[kept], low[kept], rows[kept]
            order = np.lexsort((rows, fates[rows], low, high))
            high, low, rows = high[order], low[order], rows[order]
            begins = np.ones(len(rows), dtype=bool)
            begins[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
            yield rows, np.maximum.accumulate(np.where(begins, np.arange(len(rows)), 0))


def drop_duplicates(rows: Digests, fates: Any) -> None:
    """Of equal rows one is kept, in the training part if one of them is there.

    `fates` [N] of uint8 is changed, here and below.
    """
    for numbers, first in rows.equal(fates):
        fates[numbers[first != np.arange(len(numbers))]] = DUPLICATE


def drop_prompts_of_both(prompts: Digests, fates: Any) -> None:
    """No prompt of the training part is left in the validation part."""
    for numbers, first in prompts.equal(fates):
        there = fates[numbers]
        fates[numbers[there != there[first]]] = IN_BOTH
