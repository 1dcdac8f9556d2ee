"""Rows from files, folders, the hub or a named data set, with errors that name file and line."""

from __future__ import annotations

import csv
import gzip
import inspect
import io
import json
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError, validate_call

from posttrain.data.templates import fill
from posttrain.data.verl import from_verl

if TYPE_CHECKING:
    from posttrain.config import DataConfig

Row = dict[str, Any]

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt")
STREAMED = (".jsonl", ".parquet")
"""Those that are read row by row; the others are read into memory as a whole."""


def load_rows(config: DataConfig) -> list[Row]:
    """The rows of one data section: columns renamed, cut to max_samples, template filled."""
    if config.name is not None:
        rows = _named(config)
    else:
        rows = [from_verl(row) for row in read_path(str(config.path), config.split)]
    source = config.name or config.path
    if not rows:
        place = "" if None in (config.name, config.path) else f" of {config.path}"
        raise ValueError(f"{source}: no rows in the split {config.split}{place}")
    if config.columns:
        rows = [rename_columns(row, config.columns, str(source)) for row in rows]
    rows = rows[: config.max_samples]
    if config.prompt_template is None:
        return rows
    return [fill(config.prompt_template, row, where) for where, row in numbered(rows, source)]


def draw(rows: list[Row], most: int | None) -> list[Row]:
    """At most so many rows in their order, always the same ones, drawn by chance: files are often
    sorted by kind or label, and others go through the kinds in turn."""
    n = min(most or len(rows), len(rows))
    return [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), n))]


def mix(sources: list[tuple[list[Any], float]], seed: int) -> list[Any]:
    """Rows of several sources, each taken `weight` times (a fraction: a random part)."""
    mixed: list[Any] = []
    for rows, weight in sources:
        whole, part = int(weight), weight % 1
        mixed += rows * whole
        mixed += random.Random(seed).sample(rows, round(part * len(rows)))
    if not mixed:
        raise ValueError("data.weight leaves no row of the mixture")
    return mixed


def rename_columns(row: Row, columns: dict[str, str], source: str) -> Row:
    """`columns` maps our name to the file's. Other columns stay, for rewards to read."""
    for theirs in columns.values():
        if theirs not in row:
            raise ValueError(f"{source}: no column {theirs!r}; found {', '.join(row)}")
    renamed = {ours: row[theirs] for ours, theirs in columns.items()}
    return {**{k: v for k, v in row.items() if k not in columns.values()}, **renamed}


def read_path(path: str, split: str) -> list[Row]:
    """A file, a folder with `split`.* in it, or a name on the hub."""
    place = Path(path)
    if place.is_file():
        return list(read_file(place))
    if place.is_dir():
        return [row for file in files_of_split(place, split) for row in read_file(file)]
    if place.is_absolute() or place.suffix or path.startswith(".") or path.count("/") > 1:
        raise ValueError(f"no such file or folder: {path}")
    return read_hub(path, split)


def files_of_split(folder: Path, split: str) -> list[Path]:
    files = sorted(f for f in folder.iterdir() if _suffix(f) in SUFFIXES)
    chosen = [f for f in files if f.name.split(".")[0].split("-")[0] == split]
    if not chosen:
        found = ", ".join(f.name for f in files) or "no data file"
        raise ValueError(f"{folder} has no file for split {split!r}: found {found}")
    return chosen


def find_file(path: str, names: Sequence[str]) -> Path:
    """The file `path` itself, or, of a folder, the first of `names` that lies in it."""
    place = Path(path)
    if place.is_file():
        return place
    if not place.exists():
        raise ValueError(f"data.path: {path} does not exist")
    for name in names:
        if (place / name).is_file():
            return place / name
    found = ", ".join(sorted(f.name for f in place.iterdir())) or "nothing"
    raise ValueError(f"data.path: {path} has no {' or '.join(names)}: found {found}")


def numbered(rows: Iterable[Row], source: object) -> Iterator[tuple[str, Row]]:
    """Rows, each with the words that an error about it begins with."""
    return ((f"{source}, row {number}", row) for number, row in enumerate(rows, 1))


def check_split(name: str, split: str, splits: Sequence[str]) -> None:
    """A ValueError for a split that the data set `name` does not have."""
    if split in splits:
        return
    if len(splits) > 1:
        raise ValueError(f"{name}: unknown split {split!r}: choose one of {', '.join(splits)}")
    fix = "give eval.data another data set" if splits[0] == "train" else "it is for evaluation"
    raise ValueError(f"{name} has the split {splits[0]} only, not {split!r}: {fix}")


def check_texts(row: Row, columns: Sequence[str], where: str, blank: bool = False) -> None:
    """A ValueError unless each of `columns` of a row holds a text; one that is not blank, but with
    `blank`."""
    for column in columns:
        if column not in row:
            raise ValueError(
                f"{where}: no column {column}; found {', '.join(row) or 'none'}; "
                "data.path must be the data set's own file"
            )
        if not isinstance(row[column], str) or not (blank or row[column].strip()):
            raise ValueError(
                f"{where}: column {column} must be a text{'' if blank else ' that is not blank'}, "
                f"found {str(row[column])[:40]!r}; correct the row or take it out"
            )


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without their ends; nothing is quoting."""
    text = _text(path).replace("\r\n", "\n").removesuffix("\n")
    return text.split("\n") if text else []


def read_file(path: Path) -> Iterator[Row]:
    """Rows of one file. A malformed row is a ValueError with file and line."""
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
        raise ValueError(f"{path}: unknown kind of file; known are {', '.join(SUFFIXES)}")


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _bytes(path: Path) -> bytes:
    raw = path.read_bytes()
    if path.suffix != ".gz":
        return raw
    try:
        return gzip.decompress(raw)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from None


def _text(path: Path) -> str:
    raw = _bytes(path)
    try:
        text = raw.decode("utf-8-sig")  # without the mark that spreadsheets write
        place = text.find("\0")  # of UTF-16 without a mark, or of a file that was cut and padded
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text: save it as UTF-8") from None
    if place >= 0:
        line = text.count("\n", 0, place) + 1
        raise ValueError(f"{path}, line {line}: a byte 0, which no text holds: save it as UTF-8")
    return text


def placed_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows of one file, each with the words that an error about it begins with."""
    if _suffix(path) == ".jsonl":
        return ((f"{path}, line {number}", row) for number, row in _read_jsonl(path))
    return numbered(read_file(path), path)


def _lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            yield from file
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: not a whole gzip file ({error})") from None


def _read_jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows with the numbers of their lines."""
    for number, raw in enumerate(_lines(path), 1):
        where = f"{path}, line {number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{where}: not UTF-8 text: save the file as UTF-8") from None
        if not line.strip():
            continue
        try:
            row = json.loads(line.rstrip())  # an error at the end is in a column of this line
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{where}: not valid JSON ({error.msg}, column {error.colno}); a line must be one "
                "object"
            ) from None
        except (ValueError, RecursionError) as error:  # a number or a nesting beyond all limits
            raise ValueError(f"{where}: not to be read as JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a row must be an object, found {line.strip()[:40]}")
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
            raise ValueError(f"{path}, row {number}: a row must be an object")
        yield row


def _read_csv(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the default refuses texts above 131,072 characters
    # strict: or else a mark that is never closed swallows rows, without a word
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    while True:
        where = f"{path}, line {reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{where}: a quotation mark is never closed or stands in the middle ({error}): "
                "a value with marks is put between marks, and those in it are doubled"
            ) from None
        if cells is None:
            return
        if not columns:
            columns = cells
            twice = [name for name in columns if columns.count(name) > 1]
            if twice:
                raise ValueError(f"{where}: the column {twice[0]!r} stands there twice: rename one")
        elif cells:
            if len(cells) != len(columns):
                raise ValueError(
                    f"{where}: expected {len(columns)} columns, found {len(cells)}: put a value "
                    "that holds the separator between quotation marks"
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
    """Rows of a data set on the Hugging Face hub (needs the `hub` extra)."""
    try:
        import datasets
    except ImportError:
        message = f"{name}: reading from the hub needs pip install 'posttrain[hub]'"
        raise ValueError(message) from None
    try:
        return list(datasets.load_dataset(name, config, data_dir=data_dir, split=split))
    except (OSError, ValueError, RuntimeError) as error:
        # every failure of that library, from no network to no such split, is one of these
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise ValueError(
            f"{name}: no such file or folder here, and the hub did not give it ({reason})"
        ) from None


def _named(config: DataConfig) -> list[Row]:
    from posttrain.data import DATASETS

    if config.name not in DATASETS:
        near = get_close_matches(str(config.name), DATASETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(DATASETS)}"
        raise ValueError(f"data.name: no data set {config.name!r}; {hint}")
    load = DATASETS[config.name]
    options = dict(config.options)
    if config.path is not None:
        options["path"] = config.path
    accepted = [p for p in inspect.signature(load).parameters if p != "split"]
    for option in options:
        if option not in accepted:
            raise ValueError(
                f"data.options: {config.name} has no option {option!r}; "
                f"known: {', '.join(accepted)}"
            )
    try:
        return validate_call(load)(config.split, **options)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(
            f"data.options.{first['loc'][0]}: {first['msg'].lower()} (got {first['input']!r})"
        ) from None
