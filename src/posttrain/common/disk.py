"""The disk that files are written to: whether there is room, and what it means if there is none."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from posttrain.common.files import write_text

FULL = ("No space left on device", "os error 28", "Disk quota exceeded", "os error 122")
"""What libraries say of a full disk, in errors that are not an OSError."""
TORCH_FAILS = "PytorchStreamWriter failed writing file"
"""What torch.save says of any disk that takes no more."""
NUMPY_FAILS = re.compile(r"\d+ requested and \d+ written")
"""What numpy says of it, in an error without a number."""
BESIDES = 2**23
"""Bytes of a checkpoint's other files, such as the tokenizer's, and of the run's."""
LOOK_EVERY = 30.0
"""Seconds between two looks at the free space during a run."""


def size(num_bytes: float) -> str:
    """Return a number of bytes in words."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def check_space(
    folder: Path, needed: int, remedy: str = " or choose another trainer.output_dir"
) -> None:
    """Raise ValueError if a folder's disk has fewer than `needed` bytes, and 8 MiB, free."""
    free = shutil.disk_usage(folder).free
    if free < (needed := needed + BESIDES):
        raise ValueError(
            f"{folder} has {size(free)} free, a checkpoint needs {size(needed)}: free some space"
            f"{remedy}"
        )


@dataclass
class RunDisk:
    """The disk of a run directory while the run writes to it."""

    run_dir: Path
    checkpoint_bytes: int = 0
    """An estimate, which holds until there is a checkpoint that is larger."""
    settle: Callable[[], object] = lambda: None
    """Gives a checkpoint that is on its way time to arrive."""
    next_look: float = 0.0
    is_low: bool = False

    def warning(self) -> str | None:
        """Return a line when there is no longer room for a checkpoint; looks every 30 s.

        The line comes again only after there was room.
        """
        if (now := time.monotonic()) < self.next_look:
            return None
        self.next_look = now + LOOK_EVERY
        needed = max([self.checkpoint_bytes, *map(folder_size, self._checkpoints())]) + BESIDES
        free = shutil.disk_usage(self.run_dir).free
        was_low, self.is_low = self.is_low, free < needed
        if was_low or not self.is_low:
            return None
        return (
            f"{self.run_dir} has {size(free)} free, the next checkpoint needs {size(needed)}: free "
            "some space before it, or the run stops there"
        )

    def failure(self, file: str, error: OSError) -> str:
        """Return in one line that a file of the run could not be written, and how to resume."""
        reason = write_failure(error)
        if is_full(error):
            free = shutil.disk_usage(self.run_dir).free
            also = ": a quota, or the number of files, is used up" if free > BESIDES else ""
            reason = f"{reason}, with {size(free)} free{also}"
        self.settle()
        newest = max(self._checkpoints(), key=lambda path: path.stat().st_mtime, default=None)
        remedy = "start again: there is no checkpoint yet"
        if newest is not None:
            remedy = f"resume from {newest.name} with trainer.resume_from_checkpoint={self.run_dir}"
        first = "free some space" if is_full(error) else "mend that"
        return f"{file} could not be written ({reason}): {first}, then {remedy}"

    def _checkpoints(self) -> list[Path]:
        return [path for path in self.run_dir.glob("checkpoint-*") if path.is_dir()]


def folder_size(folder: Path) -> int:
    """Return the bytes of all files in a folder, without those that disappear meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def update_text(file: Path, text: str) -> None:
    """Write a small file as a whole; on a full disk write over the old one, if it is as large.

    What a run says about itself must not hide the error that ended it.
    """
    try:
        write_text(file, text)
    except OSError as error:
        if not is_full(error):
            raise
        content = text.encode()
        if file.is_file() and len(content) <= 512 * file.stat().st_blocks:
            with file.open("r+b") as out:
                out.write(content)
                out.truncate()


def is_full(error: BaseException) -> bool:
    """Whether an error, of any library, says that a disk is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    said = str(error)
    return any(words in said for words in (*FULL, TORCH_FAILS)) or bool(NUMPY_FAILS.search(said))


def write_failure(error: BaseException) -> str | None:
    """Return why a file could not be written; None if the error is about something else."""
    if is_full(error):
        return "the disk is full"
    return (error.strerror or str(error)) if isinstance(error, OSError) else None


def temporary_is_full(error: BaseException) -> str:
    """Return what to do if the folder for temporary files is full; empty for other errors."""
    if not is_full(error):
        return ""
    return f"{tempfile.gettempdir()} is full: free some space, or set TMPDIR to another folder"


def check_writable(folder: Path, key: str) -> None:
    """Raise ValueError, naming the key, if a folder cannot be made or written to."""
    if folder.is_symlink() and not folder.exists():
        raise ValueError(f"{key}: {folder} is a link to {folder.readlink()}, which does not exist")
    place = next((p for p in (folder, *folder.parents) if p.exists()), Path())
    if not place.is_dir():
        raise ValueError(f"{key}: {place} is a file, not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"{key}: {place} cannot be written to")
