"""Rows read from files, folders and the hub, with errors that name file and line."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from posttrain.common.errors import SettingError
from posttrain.common.files import expanded
from posttrain.data.contents import ALSO_NAMED, PACKED, read_text, suffix_of
from posttrain.data.folders import SUFFIXES, files_of_split, in_order, refuse_lost_parts
from posttrain.data.formats import (
    read_arrow,
    read_csv,
    read_json,
    read_json_lines,
    read_parquet,
)
from posttrain.data.rows import Row, numbered

STREAMED = (".jsonl", ".parquet")
"""Files that are read row by row; the others are read into memory whole."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
OTHERS = {
    ".zip": "unpack it",
    ".tar": "unpack it",
    ".tgz": "unpack it",
    ".7z": "unpack it",
    ".xlsx": "save its sheet as .csv",
    ".xls": "save its sheet as .csv",
    ".ods": "save its sheet as .csv",
    ".yaml": "convert it to .json",
    ".yml": "convert it to .json",
    ".pkl": "a pickle can run code and is never loaded; save its rows as .jsonl",
    ".pickle": "a pickle can run code and is never loaded; save its rows as .jsonl",
    ".npy": "save its rows as .jsonl",
    ".npz": "save its rows as .jsonl",
    ".md": "name it .txt if it is one text",
}
"""Suffixes of files that are not read, and what to do with such a file."""
FILE_SUFFIXES = (*SUFFIXES, *ALSO_NAMED, *PACKED, *OTHERS, ".py")
"""Suffixes of which a name is that of a file, never of a hub data set such as owner/set-v2.5."""


def read_path(path: str | Sequence[str], split: str) -> list[Row]:
    """Return the rows of a file, a folder's split, a hub data set, a glob, or a list of these."""
    if not isinstance(path, str):
        refuse_repeated(path)
        return [row for part in path for row in read_path(part, split)]
    path = expanded(path)
    location = Path(path)
    if location.is_file():
        return list(read_file(location, split))
    if location.is_dir():
        return [row for file in files_of_split(location, split) for row in read_file(file, split)]
    if glob.has_magic(path):
        files = sorted((Path(f) for f in glob.glob(path, recursive=True)), key=in_order)
        files = [file for file in files if file.is_file()]
        if not files:
            raise ValueError(f"no file matches {path} (in {Path.cwd()})")
        refuse_lost_parts(files)
        return [row for file in files for row in read_file(file, split)]
    # a hub name is at most owner/name
    if not HUB_NAME.match(path) or location.suffix.lower() in FILE_SUFFIXES:
        at = "" if location.is_absolute() else f" (in {Path.cwd()})"
        raise ValueError(f"no such file or folder: {path}{at}")
    return read_hub(path, split)


def refuse_repeated(paths: Sequence[str]) -> None:
    """Raise ValueError if a list names a file twice, itself or by a glob."""
    seen: dict[Path, str] = {}
    for path in paths:
        name = expanded(path)
        files = glob.glob(name, recursive=True) if not Path(name).exists() else [name]
        for file in {Path(file).resolve() for file in files}:
            if file in seen:
                raise ValueError(
                    f"data.path: {seen[file]} and {path} are both {file}: name it once (to weigh "
                    "it, make data a list of sections with a weight)"
                )
            seen[file] = path


def find_file(path: str, names: Sequence[str]) -> Path:
    """Return `path` if it is a file, else the first of `names` in that folder."""
    location = Path(expanded(path))
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
    text = read_text(path).replace("\r\n", "\n").removesuffix("\n")
    return text.split("\n") if text else []


def read_file(path: Path, split: str | None = None) -> Iterator[Row]:
    """Yield the rows of one file; raise ValueError with file and line for a malformed row.

    `split` chooses between the splits of a JSON file that holds several.
    """
    suffix = suffix_of(path)
    if suffix == ".parquet":
        yield from read_parquet(path)
    elif suffix == ".arrow":
        yield from read_arrow(path)
    elif suffix == ".jsonl":
        yield from (row for _, row in read_json_lines(path))
    elif suffix == ".json":
        yield from read_json(path, split)
    elif suffix in (".csv", ".tsv"):
        yield from read_csv(path, "," if suffix == ".csv" else "\t")
    elif suffix == ".txt":
        yield {"text": read_text(path)}
    else:
        fix = f": {OTHERS[suffix]}" if suffix in OTHERS else ""
        raise ValueError(f"{path}: unknown file type; expected one of {', '.join(SUFFIXES)}{fix}")


def placed_rows(path: Path, split: str | None = None) -> Iterator[tuple[str, Row]]:
    """Return an iterator over a file's rows, each with the location that names it in errors.

    `split` is that of `read_file`."""
    if suffix_of(path) == ".jsonl":
        return ((f"{path}, line {number}", row) for number, row in read_json_lines(path))
    return numbered(read_file(path, split), path)


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
