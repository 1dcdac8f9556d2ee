"""Rows read from files, folders and the hub, with errors that name file and line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from posttrain.common.errors import SettingError
from posttrain.data.rows import Row, numbered

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt")
STREAMED = (".jsonl", ".parquet")
"""Files that are read row by row; the others are read into memory whole."""


def read_path(path: str, split: str) -> list[Row]:
    """Return the rows of a file, of the files `split`.* in a folder, or of a hub data set."""
    location = Path(path)
    if location.is_file():
        return list(read_file(location))
    if location.is_dir():
        return [row for file in files_of_split(location, split) for row in read_file(file)]
    # a hub name is at most owner/name, without a suffix
    if location.is_absolute() or location.suffix or path.startswith(".") or path.count("/") > 1:
        at = "" if Path(path).is_absolute() else f" (in {Path.cwd()})"
        raise ValueError(f"no such file or folder: {path}{at}")
    return read_hub(path, split)


def files_of_split(folder: Path, split: str) -> list[Path]:
    """Return a folder's files of a split, such as train.jsonl or train-00000-of-00002.parquet."""
    files = sorted(f for f in folder.iterdir() if _suffix(f) in SUFFIXES)
    chosen = [f for f in files if f.name.split(".")[0].split("-")[0] == split]
    if not chosen:
        found = ", ".join(f.name for f in files) or "no data file"
        raise ValueError(f"{folder} has no file for split {split!r}; found {found}")
    return chosen


def find_file(path: str, names: Sequence[str]) -> Path:
    """Return `path` if it is a file, else the first of `names` in that folder."""
    location = Path(path)
    if location.is_file():
        return location
    if not location.exists():
        raise SettingError("data.path", f"{path} does not exist")
    for name in names:
        if (location / name).is_file():
            return location / name
    found = ", ".join(sorted(f.name for f in location.iterdir())) or "nothing"
    raise SettingError("data.path", f"{path} has no {' or '.join(names)}; found {found}")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file without line ends; quotation marks are plain text."""
    text = _text(path).replace("\r\n", "\n").removesuffix("\n")
    return text.split("\n") if text else []


def read_file(path: Path) -> Iterator[Row]:
    """Yield the rows of one file; raise ValueError with file and line for a malformed row."""
    suffix = _suffix(path)
    if suffix == ".parquet":
        yield from _read_parquet(path)
    elif suffix == ".jsonl":
        yield from (row for _, row in _read_jsonl(path))
    elif suffix == ".json":
        yield from _read_json(path)
    elif suffix in (".csv", ".tsv"):
        yield from _read_csv(path, "," if suffix == ".csv" else "\t")
    elif suffix == ".txt":
        yield {"text": _text(path)}
    else:
        raise ValueError(f"{path}: unknown file type; expected one of {', '.join(SUFFIXES)}")


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _bytes(path: Path) -> bytes:
    raw = path.read_bytes()
    if path.suffix != ".gz":
        return raw
    try:
        return gzip.decompress(raw)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a complete gzip file ({error})") from None


def _text(path: Path) -> str:
    raw = _bytes(path)
    try:
        text = raw.decode("utf-8-sig")  # drops the byte-order mark that spreadsheets write
        null = text.find("\0")  # from UTF-16 without a mark, or a truncated file that was padded
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text: save it as UTF-8") from None
    if null >= 0:
        line = text.count("\n", 0, null) + 1
        raise ValueError(f"{path}, line {line}: a null byte, not text: save it as UTF-8")
    return text


def placed_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Return an iterator over a file's rows, each with the location that names it in errors."""
    if _suffix(path) == ".jsonl":
        return ((f"{path}, line {number}", row) for number, row in _read_jsonl(path))
    return numbered(read_file(path), path)


def _lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            yield from file
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: not a complete gzip file ({error})") from None


def _read_jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield each row with the number of its line."""
    for number, raw in enumerate(_lines(path), 1):
        where = f"{path}, line {number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{where}: not UTF-8 text: save the file as UTF-8") from None
        if not line.strip():
            continue
        try:
            row = json.loads(line.rstrip())  # stripped: an error at the end is in this line
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{where}: not valid JSON ({error.msg}, column {error.colno}); a line must be one "
                "object"
            ) from None
        except (ValueError, RecursionError) as error:  # a number or nesting beyond the limits
            raise ValueError(f"{where}: cannot be read as JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected an object, got {line.strip()[:40]}")
        yield number, row


def _read_json(path: Path) -> Iterator[Row]:
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}, column {error.colno})"
        ) from None
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of rows, or an object with a list under 'data'")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number}: expected an object")
        yield row


def _read_csv(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the default refuses texts above 131,072 characters
    # strict: otherwise a quotation mark that is never closed silently swallows rows
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    while True:
        where = f"{path}, line {reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{where}: a quotation mark is never closed or inside an unquoted value ({error}): "
                "put such a value in quotation marks, and double those in it"
            ) from None
        if cells is None:
            return
        if not columns:
            columns = cells
            repeated = [name for name in columns if columns.count(name) > 1]
            if repeated:
                raise ValueError(f"{where}: the column {repeated[0]!r} occurs twice: rename one")
        elif cells:
            if len(cells) != len(columns):
                raise ValueError(
                    f"{where}: expected {len(columns)} columns, got {len(cells)}: put quotation "
                    "marks around a value that contains the separator"
                )
            yield dict(zip(columns, cells))


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    file = pyarrow.BufferReader(_bytes(path)) if path.suffix == ".gz" else path
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except pyarrow.lib.ArrowInvalid as error:
        raise ValueError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None


def read_hub(
    name: str, split: str, config: str | None = None, data_dir: str | None = None
) -> list[Row]:
    """Return the rows of a data set on the Hugging Face hub (needs the extra `hub`)."""
    try:
        import datasets
    except ImportError:
        message = f"{name}: reading from the hub needs pip install 'posttrain[hub]'"
        raise ValueError(message) from None
    try:
        return list(datasets.load_dataset(name, config, data_dir=data_dir, split=split))
    except (OSError, ValueError, RuntimeError) as error:
        # all failures of that library, from no network to no such split, are of these types
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise ValueError(
            f"{name}: no such local file or folder, and the hub did not return it ({reason})"
        ) from None
