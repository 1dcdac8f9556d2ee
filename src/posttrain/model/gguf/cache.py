"""GGUF files as models: each is expanded once, into a folder that its contents name.

A folder, not memory: everything that reads a model's config, tokenizer, template, stop tokens or
weights reads folders, several times a run and in other processes, and expanding a file takes longer
than reading what it became.
"""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import os
from pathlib import Path
from typing import Any

from posttrain.common.disk import size, write_failure
from posttrain.common.files import expanded, replacing_folder, sha256, write_text
from posttrain.model.gguf.header import LICENCE, ORIGIN, need_library, read_header
from posttrain.model.integrity import read_json

log = logging.getLogger(__name__)

FORM = 1
"""Raised when the same file is expanded otherwise."""


def is_gguf(name: str) -> bool:
    """Whether a model's name is that of a GGUF file."""
    return name.lower().endswith(".gguf") and not Path(name).is_dir()


def cache_dir() -> Path:
    """Return the folder of expanded files: $POSTTRAIN_CACHE, by default ~/.cache/posttrain."""
    default = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(expanded(os.environ.get("POSTTRAIN_CACHE") or f"{default}/posttrain")) / "gguf"


def gguf_folder(name: str) -> str:
    """Return the model folder that a GGUF file was expanded to, expanding it if it is new.

    Processes that ask at the same time wait for the first. Raises ValueError for a file that is
    damaged or holds what is not read.
    """
    file = Path(name).resolve()
    need_library(Path(name))
    if not file.is_file():
        raise ValueError(f"model.name: no such file: {name}")
    state, cache = file.stat(), cache_dir()
    try:
        folder = _folder_of(file, state.st_size, state.st_mtime_ns, cache)
        if not Path(folder).is_dir():  # it was deleted since
            _folder_of.cache_clear()
            folder = _folder_of(file, state.st_size, state.st_mtime_ns, cache)
    except OSError as error:
        reason = write_failure(error)
        raise ValueError(
            f"{name} cannot be expanded into {cache} ({reason}): set POSTTRAIN_CACHE to a folder "
            "with room for its weights in fp32"
        ) from error
    return folder


@functools.lru_cache(maxsize=16)
def _folder_of(file: Path, _size: int, _changed: int, cache: Path) -> str:
    """Return the folder of a file that has this size and time of its last change."""
    from posttrain.model.gguf.reading import convert_gguf

    read_header(file)  # so that what is no model costs no reading of the whole
    folder = cache / f"{sha256(file)[:32]}-{FORM}"
    if not (folder / ORIGIN).is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f".{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / ORIGIN).is_file():
                log.warning("%s is expanded into %s", file, folder)
                with replacing_folder(folder, durable=False) as writing:
                    convert_gguf(file, writing)
                    _name(writing, file)
                total = sum(part.stat().st_size for part in folder.iterdir())
                log.warning("%s: %s of disk", folder, size(total))
    if not Path(origin(str(folder)) or "").is_file():  # it was moved
        _name(folder, file)
    return str(folder)


def _name(folder: Path, file: Path) -> None:
    """Record the GGUF file in the folder that is made of it."""
    record = read_json(folder / ORIGIN) | {"file": str(file)}
    write_text(folder / ORIGIN, json.dumps(record))


def origin(folder: str) -> str | None:
    """Return the GGUF file that a folder was expanded from; None for other folders."""
    file = read_json(Path(folder) / ORIGIN).get("file")
    return str(file) if file else None


def licence_in(model: Path) -> str | None:
    """Return the licence that a GGUF file states, or that of which a folder was made; else None."""
    if model.is_file():
        licence = read_header(model).settings.get(LICENCE)
    else:
        licence = read_json(model / ORIGIN).get("licence")
    return licence if isinstance(licence, str) and licence else None


def name_file(model: Any, folder: str) -> None:
    """Make adapters of a model name the GGUF file that it comes from, not the expanded folder."""
    if (file := origin(folder)) is not None:
        model.name_or_path = model.config.name_or_path = file
