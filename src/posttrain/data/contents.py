"""A data file's contents: unpacked and decoded, or named if they are not what its name says."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posttrain.common.files import refuse_pointer

PACKED = (".gz", ".bz2", ".xz", ".zst")
"""Suffixes of compressed files."""
ALSO_NAMED = {
    ".ndjson": ".jsonl",
    ".jsonlines": ".jsonl",
    ".jl": ".jsonl",
    ".feather": ".arrow",
    ".pq": ".parquet",
}
"""Other suffixes of a format."""
SIGNS = {
    b"\x1f\x8b": ("a gzip file", ".gz"),
    b"BZh": ("a bzip2 file", ".bz2"),
    b"\xfd7zXZ\0": ("an xz file", ".xz"),
    b"\x28\xb5\x2f\xfd": ("a Zstandard file", ".zst"),
    b"PAR1": ("a Parquet file", ".parquet"),
    b"ARROW1": ("an Arrow file", ".arrow"),
    b"PK\x03\x04": ("a zip archive or a spreadsheet", ""),
    b"%PDF": ("a PDF", ""),
    b"SQLite format 3": ("an SQLite database", ""),
    b"\x89HDF": ("an HDF5 file", ""),
    b"Obj\x01": ("an Avro file", ""),
    b"\x80\x04\x95": ("a pickle, which can run code and is never loaded", ""),
}
"""First bytes of files that are no text, with what they are and the suffix that they need."""
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
FOREIGN = re.compile(rb"[\x80-\xff]+")
SAMPLE = 1 << 18  # bytes by which an encoding is guessed


def suffix_of(path: Path) -> str:
    """Return the suffix of a file's format: in lower case, without that of its compression."""
    suffix = path.suffix.lower()
    suffix = Path(path.stem).suffix.lower() if suffix in PACKED else suffix
    return ALSO_NAMED.get(suffix, suffix)


def packed(path: Path) -> bool:
    """Whether a file's suffix is that of a compression."""
    return path.suffix.lower() in PACKED


def open_file(path: Path) -> Any:
    """Return a file as a stream of bytes, unpacked if its suffix is one of PACKED."""
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path)
        case ".bz2":
            return bz2.open(path)
        case ".xz":
            return lzma.open(path)
        case ".zst":
            import pyarrow

            raw: Any = pyarrow.CompressedInputStream(str(path), "zstd")
            return io.BufferedReader(raw)
    return path.open("rb")


@contextmanager
def unpacking(path: Path) -> Iterator[Any]:
    """Yield `open_file`; raise ValueError if a compressed file turns out to be damaged."""
    try:
        with open_file(path) as file:
            yield file
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # not of the contents
            raise
        kind = path.suffix.lower()[1:].replace("gz", "gzip")
        raise ValueError(f"{path}: not a complete {kind} file ({error})") from None


def read_lines_of(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, unpacked."""
    with unpacking(path) as file:
        yield from file


def read_bytes(path: Path) -> bytes:
    """Return a file's contents, unpacked."""
    with unpacking(path) as file:
        content: bytes = file.read()
    return content


def refuse_foreign(path: Path, start: bytes, expected: str | None = None) -> None:
    """Raise ValueError if a file's first bytes are not those of its format, but of another.

    `expected` is the suffix of the format that it is read as."""
    refuse_pointer(path, start)
    for sign, (kind, suffix) in SIGNS.items():
        if start.startswith(sign) and suffix != expected:
            fix = f"name it {path.stem}{suffix}" if suffix else "save its data as .jsonl or .csv"
            fix = f"name it {path.name}{suffix}" if suffix in PACKED else fix
            raise ValueError(f"{path} is {kind}, not {suffix_of(path) or 'data'}: {fix}")
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise ValueError(f"{path} is a web page, not data: download the file that the page shows")


def marked_encoding(start: bytes) -> str | None:
    """Return the encoding that the mark at a text's start names, except that of UTF-8."""
    return next((name for mark, name in MARKS.items() if start.startswith(mark)), None)


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 or UTF-32 with its mark.

    Raises ValueError with the line and, if it can be told, the encoding of any other text."""
    raw = read_bytes(path)
    refuse_foreign(path, raw[:64])
    if (encoding := marked_encoding(raw)) is not None:
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            raise ValueError(
                f"{path}: {encoding.upper()} text that is damaged: save it as UTF-8"
            ) from None
    try:
        text = raw.decode("utf-8-sig")  # drops the byte-order mark that spreadsheets write
        null = text.find("\0")  # from UTF-16 without a mark, or a truncated file that was padded
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: {not_utf8(raw)}") from None
    if null >= 0:
        line = text.count("\n", 0, null) + 1
        raise ValueError(f"{path}, line {line}: {null_byte(raw)}")
    return text


def null_byte(raw: bytes) -> str:
    """Return what is wrong with a text that has a null byte."""
    wide = likely_encoding(raw)
    if wide is None:
        return "a null byte, not text: save it as UTF-8"
    return (
        f"a null byte, it seems {wide} without its mark: convert it with iconv -f {wide} -t UTF-8"
    )


def not_utf8(raw: bytes) -> str:
    """Return what is wrong with a text that is not UTF-8, with its likely encoding."""
    if (name := likely_encoding(raw)) is None:
        return "not UTF-8 text: save it as UTF-8"
    return (
        f"not UTF-8 text but, it seems, {name}: convert it with iconv -f {name} -t UTF-8, and "
        "look at the result"
    )


def likely_encoding(raw: bytes) -> str | None:
    """Return the name, as iconv takes it, of the encoding that a text is probably in."""
    raw = raw[:SAMPLE]
    for first, name in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        if raw[first::2].count(0) > 0.3 * len(raw) / 2 and raw[1 - first :: 2].count(0) == 0:
            return name
    if 0 in raw:
        return None
    if _share(raw, "euc_jp", "\u3040-\u30ff") > 0.3:
        return "EUC-JP"
    if _share(raw, "cp932", "\u3040-\u30ff") > 0.3:
        return "SHIFT_JIS"
    if _share(raw, "cp949", "\uac00-\ud7a3") > 0.95:
        return "EUC-KR"
    if _share(raw, "gb18030", "\u4e00-\u9fff\u3000-\u303f\uff00-\uffef") > 0.6:
        return "GBK"
    if _share(raw, "big5", "\u4e00-\u9fff\u3000-\u303f\uff00-\uffef") > 0.6:
        return "BIG5"
    runs = FOREIGN.findall(raw)
    letters = b"".join(runs)
    if sum(len(run) > 1 for run in runs) > 0.6 * len(runs):
        if sum(byte >= 0xC0 for byte in letters) > 0.9 * len(letters):  # letters of Cyrillic
            small = sum(byte >= 0xE0 for byte in letters)
            return "WINDOWS-1251" if small > 0.5 * len(letters) else "KOI8-R"
        return None
    return "WINDOWS-1252"


def _share(raw: bytes, encoding: str, letters: str) -> float:
    """Return the share of a class of letters, side by side, in all that are not ASCII.

    It is 0 for a text that cannot be decoded. Accented letters, which stand alone between others,
    often decode to Chinese ones."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(raw)  # the last one may be cut
    except UnicodeDecodeError:
        return 0.0
    foreign = [letter for letter in text if ord(letter) > 127]
    return len("".join(re.findall(f"[{letters}]{{2,}}", text))) / max(len(foreign), 1)
