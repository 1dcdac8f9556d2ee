"""The disk that files are written to: whether there is room, and what it means if there is none."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from pathlib import Path

FULL = ("No space left on device", "os error 28", "Disk quota exceeded", "os error 122")
"""What libraries say of a full disk, in errors that are not an OSError."""
TORCH_FAILS = "PytorchStreamWriter failed writing file"
"""What torch.save says of any disk that takes no more."""
NUMPY_FAILS = re.compile(r"\d+ requested and \d+ written")
"""What numpy says of it, in an error without a number."""


def size(num_bytes: float) -> str:
    """Return a number of bytes in words."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def check_space(folder: Path, needed: int) -> None:
    """Raise ValueError if a folder's disk has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{folder} has {size(free)} free, a checkpoint needs {size(needed)}: free some space "
            "or choose another trainer.output_dir"
        )


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
