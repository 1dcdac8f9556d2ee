"""Atomic writing of files and folders, and hashes of their contents."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))")
"""A variable of the environment in a path: $NAME or ${NAME}."""

FOREIGN = re.compile(
    r"(?P<braces>\$\{)|(?P<url>^(?!file:)\w[\w+.-]*://)|(?P<file>^file://)"
    r"|(?P<drive>^[A-Za-z]:[\\/])|(?P<tilde>/~(?=/|$))"
)
REASONS = {
    "braces": "only ${NAME} is replaced, by the environment variable of that name",
    "url": "an address, not a path: name a file or folder of this machine",
    "file": "write the path without file://",
    "drive": "a path of Windows: name a file or folder of this machine",
    "tilde": "~ is a home folder only at the beginning of a path",
}
"""What is wrong with a path that FOREIGN finds."""


def refuse_pointer(file: Path, start: bytes) -> None:
    """Raise ValueError if a file is a Git LFS pointer, of which `start` are the first bytes."""
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{file} is a Git LFS pointer, not the file itself: run git lfs pull in its folder"
        )


def expanded(path: str) -> str:
    """Return a path with ~ and ${VAR} replaced.

    Raises ValueError if one of them has no value, and for what is no path of this machine: nothing
    creates a folder named ~, ${...} or s3:.
    """
    for name in (a or b for a, b in VARIABLE.findall(path)):
        if not os.environ.get(name):
            state = "empty" if name in os.environ else "not set"
            raise ValueError(f"{path}: the environment variable {name} is {state}")
    if foreign := FOREIGN.search(VARIABLE.sub("", path)):
        raise ValueError(f"{path}: {REASONS[foreign.lastgroup or '']}")
    path = VARIABLE.sub(lambda name: os.environ[name[1] or name[2]], path)
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        user = path.split("/")[0]
        raise ValueError(f"{path}: {user} is no user's home; write ./{path} for a folder") from None


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a temporary path, which becomes `file` when the block ends without an error.

    A reader sees the old file or the new one, never a part, even if the process is killed. A link
    stays, and the file that it points to is replaced. Anything other than a regular file, such as
    /dev/stdout, is written directly.
    """
    if file.exists() and not file.is_file():
        yield file
        return
    file = file.resolve()
    temporary = file.with_name(f".{file.name}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(file.parent)


@contextmanager
def replacing_folder(folder: Path, durable: bool = True) -> Iterator[Path]:
    """Yield an empty folder, which becomes `folder` when the block ends without an error.

    Without `durable` nothing is synced: for folders that are passed on, not kept.
    """
    temporary = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in (*temporary.rglob("*"), temporary) if durable else ():
            sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if durable:
        sync(folder.parent)


def write_text(file: Path, text: str) -> None:
    """Write a file as a whole, or leave the old one."""
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json_lines(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one row per line and create the folder; what JSON cannot hold is written as text."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary, temporary.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, default=str) + "\n")


def sync(path: Path) -> None:
    """Make the operating system write a file or folder to disk, before anything relies on it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's contents, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def short_hash(value: Any) -> str:
    """Return 16 hexadecimal digits that identify a text, or any other value by its repr."""
    text = value if isinstance(value, str) else repr(value)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def finite(value: Any) -> Any:
    """Return the value with None for every float that is not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
