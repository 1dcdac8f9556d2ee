"""A checkpoint's files, written by a thread of each rank while training goes on.

Every rank writes its own files into one temporary folder and tells rank 0 their hashes. Rank 0 then
describes the checkpoint, and gives the folder its name when everything is on the disk.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from posttrain.common import distributed
from posttrain.common.files import sync
from posttrain.common.telling import tell, told
from posttrain.model.tensor_files import write_tensors

BEAT_EVERY = 2.0
"""Seconds between two signs of life of a rank that writes."""
LOOK_EVERY = 0.02
"""Seconds between two looks of rank 0 at what the others have told."""
NUMBER = itertools.count()


class Abandoned(Exception):
    """The run ends without this checkpoint."""


@dataclass
class Content:
    """A file of safetensors to write."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str] | None = None


@dataclass
class Writing:
    """One checkpoint on its way to the disk."""

    step: int
    folder: Path
    """The temporary folder."""
    files: dict[str, Content]
    """This rank's, by path in the folder."""
    holding: AbstractContextManager[Any]
    """Gives the folder its name at the end, or removes it after an error; rank 0's."""
    describe: Callable[[dict[str, str]], None]
    """What rank 0 writes at last into the folder, by the hashes of all files."""
    done: Callable[[], None]
    """What rank 0 does when the folder has its name."""
    timeout: float
    """Seconds after which rank 0 gives up on a rank that tells nothing."""
    error: BaseException | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    topic: str = field(default_factory=lambda: f"checkpoint/{next(NUMBER)}")
    beaten: float = 0.0

    def __post_init__(self) -> None:
        # a daemon: a run that is to end at once does not wait for it
        self.thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self.thread.start()

    def join(self, limit: float | None = None) -> BaseException | None:
        """Wait for this rank's part, for at most `limit` seconds; return the error that ended it.

        After the limit the checkpoint is abandoned."""
        self.thread.join(limit)
        if self.thread.is_alive():
            self.stop.set()
            self.thread.join(limit)
        return self.error

    def _run(self) -> None:
        try:
            with self.holding:
                hashes = {}
                for name, content in self.files.items():
                    file = self.folder / name
                    tensors, metadata = content.tensors, content.metadata
                    hashes[name] = write_tensors(file, tensors, metadata, self._check)
                    sync(file)
                    tensors.clear()
                if distributed.rank() != 0:
                    tell(self.topic, {"hashes": hashes})
                    return
                self.describe(self._all_hashes(hashes))
            self.done()
        except BaseException as error:
            self.error = error
            if distributed.rank() != 0 and not isinstance(error, Abandoned):
                tell(self.topic, {"failed": str(error)})

    def _check(self) -> None:
        """Raise Abandoned if the run ends; tell rank 0 at times that this one is at work."""
        if self.stop.is_set():
            raise Abandoned
        if distributed.rank() != 0 and time.monotonic() - self.beaten > BEAT_EVERY:
            self.beaten = time.monotonic()
            tell(self.topic, {})

    def _all_hashes(self, hashes: dict[str, str]) -> dict[str, str]:
        """Return the hashes of all ranks' files, when all are written."""
        waiting = set(range(1, distributed.num_ranks()))
        heard = dict.fromkeys(waiting, (time.monotonic(), 0.0))
        while waiting:
            if self.stop.wait(LOOK_EVERY):
                raise Abandoned
            for rank in sorted(waiting):
                said = told(self.topic, rank) or {"time": 0.0}
                if said["time"] != heard[rank][1]:
                    heard[rank] = time.monotonic(), said["time"]
                if "failed" in said:
                    raise OSError(f"rank {rank}: {said['failed']}")
                if "hashes" in said:
                    hashes |= said["hashes"]
                    waiting.remove(rank)
                elif time.monotonic() - heard[rank][0] > self.timeout:
                    raise OSError(f"rank {rank} has not written its part for {self.timeout:g} s")
        return hashes
