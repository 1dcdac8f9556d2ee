"""The head of a GGUF file: settings and a directory of tensors, read within the file's bounds.

Every count and length is compared with the bytes that are left before anything is read or
reserved, so that a damaged file costs neither time nor memory. The format is described in ggml's
docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from posttrain.common.files import refuse_pointer

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd"))
"""struct's letters of the types of values; 8 is a text and 9 an array."""
TEXT, ARRAY = 8, 9
MAX_NAME = 128  # bytes of a tensor's name; ggml reads 64
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16
SPLIT = "split.count"
LICENCE = "general.license"
ORIGIN = "gguf.json"
"""The file in a folder made of a GGUF file that names the file and its licence."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in a file."""

    shape: tuple[int, ...]
    """Rows first, as torch and numpy write it; the file has the reverse."""
    kind: int
    """ggml's number of the type of the numbers."""
    offset: int
    """From the start of the file, in bytes."""
    num_bytes: int


@dataclass(frozen=True)
class Header:
    """What a file says of its model."""

    settings: dict[str, Any]
    """Settings by name: numbers, texts, and lists of them."""
    tensors: dict[str, TensorInfo]


class _Cursor:
    """A position in a file, which never moves beyond its end."""

    def __init__(self, file: Path, content: mmap.mmap) -> None:
        self.file, self.content, self.place = file, content, 0

    def fail(self, what: str) -> ValueError:
        return ValueError(
            f"{self.file} is damaged or cut ({len(self.content):,} bytes): {what}; copy it again"
        )

    def take(self, count: int) -> bytes:
        """Return the next bytes; raise ValueError if there are fewer."""
        if count > len(self.content) - self.place:
            raise self.fail(f"it ends in its header, at byte {self.place:,}")
        self.place += count
        return self.content[self.place - count : self.place]

    def number(self, letter: str) -> Any:
        """Return the next number."""
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))[0]

    def text(self) -> str:
        """Return the next text."""
        raw = self.take(self.number("Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"a text before byte {self.place:,} is not UTF-8") from None

    def value(self, kind: int) -> Any:
        """Return the next value of a type."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            raise self.fail(f"a setting has the unknown type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in SCALARS:
            letter = SCALARS[inner]
            raw = self.take(count * struct.calcsize(f"<{letter}"))
            return list(struct.unpack(f"<{count}{letter}", raw))
        if inner != TEXT:
            raise self.fail(f"a list has the unknown type {inner}")
        if count * 8 > len(self.content) - self.place:
            raise self.fail(f"a list of {count:,} texts is longer than the file")
        return [self.text() for _ in range(count)]


def need_library(file: Path) -> None:
    """Raise ValueError if the package `gguf` is not installed."""
    if find_spec("gguf") is None:
        raise ValueError(f"{file}: GGUF files need pip install 'posttrain[gguf]'")


def read_header(file: Path) -> Header:
    """Return the head of a GGUF file.

    Raises ValueError if there is no such file, if it is not a GGUF file of version 2 or 3, if it is
    damaged or one part of several, or if its tensors do not lie inside it.
    """
    if not file.is_file():
        raise ValueError(f"no such file: {file}")
    with file.open("rb") as opened:
        start = opened.read(64)
        refuse_pointer(file, start)
        if start[:4] != MAGIC:
            raise ValueError(f"{file} is not a GGUF file: it does not begin with GGUF")
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _parse(file, content)


def _parse(file: Path, content: mmap.mmap) -> Header:
    cursor = _Cursor(file, content)
    cursor.take(4)
    version = cursor.number("I")
    if version not in VERSIONS:
        swapped = struct.unpack(">I", struct.pack("<I", version))[0] in VERSIONS
        reason = "it is big-endian" if swapped else f"its version is {version}"
        raise ValueError(
            f"{file}: {reason}; GGUF files of version 2 and 3, little-endian, are read"
        )
    num_tensors, num_settings = cursor.number("Q"), cursor.number("Q")
    # the shortest setting has 13 bytes, the shortest entry of a tensor 24
    if num_settings * 13 + num_tensors * 24 > len(content):
        raise cursor.fail(
            f"it claims {num_tensors:,} tensors and {num_settings:,} settings, more than fit in it"
        )
    settings: dict[str, Any] = {}
    for _ in range(num_settings):
        name = cursor.text()
        if name in settings:
            raise cursor.fail(f"it sets {name!r} twice")
        settings[name] = cursor.value(cursor.number("I"))
    for name in (SPLIT, "general.alignment"):
        if type(settings.get(name, 1)) is not int:
            raise cursor.fail(f"{name} is {settings[name]!r}, not an int")
    if settings.get(SPLIT, 1) > 1:
        raise ValueError(
            f"{file} is one of {settings[SPLIT]} parts: join them with llama.cpp's llama-gguf-split"
        )
    entries = [_entry(cursor) for _ in range(num_tensors)]
    alignment = settings.get("general.alignment", 32)
    if alignment not in (1 << n for n in range(3, 17)) or alignment > MAX_ALIGNMENT:
        raise cursor.fail(f"general.alignment is {alignment}, not a power of two")
    start = -(-cursor.place // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, shape, kind, offset in entries:
        if name in tensors:
            raise cursor.fail(f"it has two tensors {name!r}")
        tensors[name] = _placed(cursor, name, shape, kind, start + offset, alignment)
    places = sorted((t.offset, t.offset + t.num_bytes) for t in tensors.values())
    if any(end > begin for (_, end), (begin, _) in pairwise(places)):
        raise cursor.fail("its tensors overlap")
    return Header(settings, tensors)


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Return the next tensor's name, shape, type and offset."""
    name = cursor.text()
    dimensions = cursor.number("I")
    if not 0 < len(name.encode()) <= MAX_NAME or not 0 < dimensions <= MAX_DIMENSIONS:
        raise cursor.fail(f"the tensor {name[:40]!r} has {dimensions} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
    return name, shape, cursor.number("I"), cursor.number("Q")


def _placed(
    cursor: _Cursor, name: str, shape: tuple[int, ...], kind: int, offset: int, alignment: int
) -> TensorInfo:
    """Return a tensor's place; raise ValueError if it is not inside the file."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if kind not in {int(known) for known in GGML_QUANT_SIZES}:
        raise ValueError(
            f"{cursor.file}: {name} has the type {kind}, which this version of gguf does not know: "
            "install a newer one, or take another quantisation of the model"
        )
    per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    count = math.prod(shape)
    num_bytes = count // per_block * block_bytes
    if count < 1 or shape[-1] % per_block:
        raise cursor.fail(f"{name} has the shape {list(shape)}, which its type cannot have")
    if offset % alignment or offset + num_bytes > len(cursor.content):
        raise cursor.fail(f"{name} {list(shape)} lies outside the file")
    return TensorInfo(shape, kind, offset, num_bytes)
