"""Rows of one file: text in any Unicode form, JSON in its several shapes, tables, Arrow."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.data.contents import (
    marked_encoding,
    not_utf8,
    null_byte,
    packed,
    read_bytes,
    read_lines_of,
    read_text,
    refuse_foreign,
    suffix_of,
)
from posttrain.data.rows import Row
from posttrain.data.splits import split_named


def read_json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield each row with the number of its line."""
    lines = read_lines_of(path)
    first = next(lines, b"")
    refuse_foreign(path, first)
    if marked_encoding(first) is not None:
        lines = iter(read_text(path).encode().splitlines(keepends=True))
        first = next(lines, b"")
    number, raw = 1, first
    while raw:
        where = f"{path}, line {number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{where}: {not_utf8(raw)}") from None
        if line.strip():
            yield number, _row_of_line(line, where, number)
        number, raw = number + 1, next(lines, b"")


def _row_of_line(line: str, where: str, number: int) -> Row:
    try:
        # stripped: an error at the end is in this line
        row = json.loads(line.rstrip(), object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        if "\0" in line:
            raise ValueError(f"{where}: {null_byte(line.encode())}") from None
        # a file of one JSON value over many lines
        whole = "; if the file is one JSON value, name it .json" if line.strip() in "[{" else ""
        raise ValueError(
            f"{where}: not valid JSON ({error.msg}, column {error.colno}); a line must be one "
            f"object{whole}"
        ) from None
    except (ValueError, RecursionError) as error:  # a number or nesting beyond the limits
        raise ValueError(f"{where}: cannot be read as JSON ({error})") from None
    if not isinstance(row, dict):
        whole = "; if the file is one list, name it .json" if number == 1 and line[0] == "[" else ""
        raise ValueError(f"{where}: expected an object, got {line.strip()[:40]}{whole}")
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raise ValueError for a key that occurs twice."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object: remove one of them")
    return row


def read_json(path: Path, split: str | None = None) -> Iterator[Row]:
    """Yield the rows of a JSON file: a list of rows, an object of splits or of columns, or lines.

    Raises ValueError for an object of splits without `split`, naming those that it has.
    """
    text = read_text(path)
    if not text.strip():
        raise ValueError(f"{path} is empty")
    try:
        content = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        if _is_object(text.lstrip().partition("\n")[0]):
            yield from (row for _, row in read_json_lines(path))
            return
        raise ValueError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}, column {error.colno})"
        ) from None
    except (ValueError, RecursionError) as error:  # a number or nesting beyond the limits
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from None
    for number, row in enumerate(_rows_in(content, path, split), 1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number}: expected an object")
        yield row


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def splits_in(path: Path) -> list[str]:
    """Return the splits of a JSON file that holds an object of them; none for other files."""
    if not (path.is_file() and suffix_of(path) == ".json"):
        return []
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError):  # reading its rows will say why
        return []
    return _splits(content)


def _splits(content: Any) -> list[str]:
    """Return the keys of an object whose values are lists of rows."""
    if not isinstance(content, dict) or (len(content) == 1 and "data" in content):
        return []
    lists = [value for value in content.values() if isinstance(value, list)]
    rows = all(isinstance(row, dict) for value in lists for row in value)
    return list(content) if rows and any(lists) and len(lists) == len(content) else []


def _rows_in(content: Any, path: Path, split: str | None) -> list[Any]:
    """Return the rows in the value that a JSON file holds."""
    if isinstance(content, list):
        return content
    if splits := _splits(content):
        key = split_named(split, splits)
        if key is None:
            raise ValueError(f"{path} holds the splits {', '.join(splits)}: choose one of them")
        rows: list[Any] = content[key]
        return rows
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        return list(content["data"])
    columns = content if isinstance(content, dict) else {}
    if columns and all(isinstance(column, dict) for column in columns.values()):
        places = list(next(iter(columns.values())))  # as pandas writes a table
        if all(list(column) == places for column in columns.values()):
            columns = {name: list(column.values()) for name, column in columns.items()}
    if columns and all(isinstance(column, list) and column for column in columns.values()):
        sizes = {name: len(column) for name, column in columns.items()}
        if len(set(sizes.values())) == 1:
            return [dict(zip(columns, row)) for row in zip(*columns.values())]
        counts = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"{path}: an object of columns of different lengths: {counts}")
    raise ValueError(
        f"{path}: expected a list of rows, or an object with a list under 'data', with splits or "
        "with columns"
    )


def read_csv(path: Path, delimiter: str) -> Iterator[Row]:
    """Yield the rows of a table; spaces after the separators are not part of names and values.

    They are taken for layout if the header has them."""
    csv.field_size_limit(2**31 - 1)  # the default refuses texts above 131,072 characters
    text = read_text(path)
    spaced = _spaced(text.partition("\n")[0], delimiter)
    # strict: otherwise a quotation mark that is never closed silently swallows rows
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=spaced
    )
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
            columns = _columns(cells, where)
        elif cells:
            if len(cells) != len(columns):
                raise ValueError(
                    f"{where}: expected {len(columns)} columns, got {len(cells)}: put quotation "
                    "marks around a value that contains the separator"
                )
            yield dict(zip(columns, cells))


def _spaced(header: str, delimiter: str) -> bool:
    """Whether names after the first one begin with a space."""
    try:
        cells = next(csv.reader([header], delimiter=delimiter), [])
    except csv.Error:  # the whole table is read next, with the reason
        return False
    return any(cell.startswith(" ") for cell in cells[1:])


def _columns(cells: list[str], where: str) -> list[str]:
    """Return the names in a table's header."""
    columns = [name.strip() for name in cells]
    repeated = [name for name in columns if columns.count(name) > 1]
    if repeated:
        raise ValueError(f"{where}: the column {repeated[0]!r} occurs twice: rename one")
    if len(columns) == 1 and (";" in columns[0] or "\t" in columns[0]):
        raise ValueError(
            f"{where}: the only column is {columns[0][:60]!r}: save the table with commas, or with "
            "tabs as .tsv"
        )
    return columns


def read_parquet(path: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file."""
    import pyarrow.parquet

    with path.open("rb") as start:
        refuse_foreign(path, start.read(64), path.suffix.lower() if packed(path) else ".parquet")
    file = pyarrow.BufferReader(read_bytes(path)) if packed(path) else path
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pyarrow.lib.ArrowInvalid, OSError) as error:  # OSError: damaged pages
        raise ValueError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None


def read_arrow(path: Path) -> Iterator[Row]:
    """Yield the rows of an Arrow file, as `save_to_disk` of the library datasets writes it."""
    import pyarrow

    with path.open("rb") as start:
        refuse_foreign(path, start.read(64), path.suffix.lower() if packed(path) else ".arrow")
    try:
        whole = pyarrow.BufferReader(read_bytes(path)) if packed(path) else None
        with whole or pyarrow.memory_map(str(path)) as file:
            if file.read(6) == b"ARROW1":  # the form with an index at its end
                table = pyarrow.ipc.open_file(file)
                batches = (table.get_batch(i) for i in range(table.num_record_batches))
            else:
                file.seek(0)
                batches = pyarrow.ipc.open_stream(file)
            for batch in batches:
                yield from batch.to_pylist()
    except (pyarrow.lib.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: not an Arrow file that can be read ({reason}): save the data as Parquet"
        ) from None
