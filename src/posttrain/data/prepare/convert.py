"""`posttrain data prepare`: files of rows to train.parquet and validation.parquet.

Two passes over the files keep memory independent of their size. The first checks every row, finds
the type of every column, and writes a digest of every row to disk, from which follows which rows
are kept; the second writes those. A malformed row is found before anything is written.

A keyed hash of a row's group alone decides its part (training or validation). The group is the
value in the column group_key, or else what the user asks before the first answer, with case and
whitespace normalised. So equal prompts are in one part, and a row's part depends neither on the
order of rows and files nor on other rows.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from posttrain.common.errors import SettingError
from posttrain.common.files import expanded, sha256
from posttrain.data.files import STREAMED
from posttrain.data.folders import SUFFIXES
from posttrain.data.holdout import question_of
from posttrain.data.prepare.decontamination import Ngrams, read_ngrams, shared
from posttrain.data.prepare.digests import (
    DUPLICATE,
    EMPTY,
    IN_BOTH,
    OVERLAPPING,
    TRAIN,
    VALIDATION,
    Digests,
    drop_duplicates,
    drop_prompts_of_both,
)
from posttrain.data.prepare.standard import (
    OWN_COLUMNS,
    PARTS,
    Preparation,
    content,
    group_of,
    laid_out,
    part_of,
    standard_rows,
)
from posttrain.data.rows import Row

# most rows that are in memory at once, and about as many characters
CHUNK_ROWS, CHUNK_SIZE = 10_000, 2**22
NESTED = pyarrow.struct([])


@dataclass
class Survey:
    """The result of the first pass."""

    outcomes: Any  # [N] uint8, the constants of digests.py
    types: dict[str, pyarrow.DataType | None]
    """Column -> the type that holds all of its values; None if there is no such type."""


@dataclass
class Prepared:
    """The result of `posttrain data prepare`."""

    num_rows: int
    kept: dict[str, int]
    """Part -> rows."""
    dropped: dict[str, int]
    """Reason -> rows."""
    left_out: dict[str, str]
    """Column that is not written -> reason."""
    seconds: float
    output_dir: Path

    def lines(self) -> Iterator[str]:
        """Yield the lines of the report."""
        yield f"{self.num_rows:,} rows, {self.num_rows / self.seconds:,.0f} rows/s"
        for part, count in self.kept.items():
            file = self.output_dir / f"{part}.parquet"
            yield f"{part:<12}{count:>12,}" + (f"  {file}" if count else "  no file")
        for reason, count in self.dropped.items():
            yield f"dropped     {count:>12,}  {reason}"
        for name, reason in self.left_out.items():
            yield f"left out    {name}: {reason}"


def prepare(patterns: list[str], config: Preparation) -> Prepared:
    """Write the two files; raise ValueError with file and line for a malformed row."""
    begin = time.perf_counter()
    check(config)
    files = expand(patterns)
    targets = [config.output_dir / f"{name}.parquet" for name in PARTS.values()]
    for file in files:
        if file.resolve() in [target.resolve() for target in targets]:
            raise SettingError("output_dir", f"{file} would be overwritten: choose another")
    held_out = expand([config.decontaminate], SUFFIXES) if config.decontaminate else []
    ngrams = read_ngrams(held_out) if held_out else None
    existed = config.output_dir.is_dir()
    work = config.output_dir / ".prepare"
    shutil.rmtree(work, ignore_errors=True)  # left by a run that was killed
    work.mkdir(parents=True)
    try:
        result = survey(files, config, ngrams, work)
        prepared = summarise(result, config)
        provenance = {
            "files": [
                {"path": str(f), "bytes": f.stat().st_size, "sha256": sha256(f)} for f in files
            ],
            "options": {k: v for k, v in asdict(config).items() if k != "output_dir"},
            "num_rows": prepared.num_rows,
            "kept": prepared.kept,
            "dropped": prepared.dropped,
        }
        schema = schema_of(result.types, config, prepared.left_out)
        metadata = {"posttrain": json.dumps(provenance)}
        write(files, config, result.outcomes, schema.with_metadata(metadata), work)
        for target in targets[::-1]:  # a new file next to an old one could share prompts with it
            target.unlink(missing_ok=True)
        for target in targets:
            if (work / target.name).exists():
                os.replace(work / target.name, target)
    finally:
        shutil.rmtree(work)
        if not existed and not any(config.output_dir.iterdir()):
            config.output_dir.rmdir()
    prepared.seconds = time.perf_counter() - begin
    return prepared


def check(config: Preparation) -> None:
    """Raise SettingError for an unknown format or a val_split out of range."""
    if config.format not in OWN_COLUMNS:
        known = ", ".join(OWN_COLUMNS)
        raise SettingError("format", f"{config.format!r} is not known: choose one of {known}")
    if not 0 <= config.val_split < 1:
        problem = f"must be at least 0 and below 1; got {config.val_split}"
        raise SettingError("val_split", problem)


def expand(patterns: list[str], suffixes: tuple[str, ...] = STREAMED) -> list[Path]:
    """Return the files that paths and globs name, each once; those of a glob sorted by name."""
    found: dict[Path, Path] = {}
    for pattern in map(expanded, patterns):
        path = Path(pattern)
        if path.is_dir():
            raise ValueError(f"{pattern} is a folder: name its files, such as {pattern}/*.jsonl")
        names = [pattern] if path.is_file() else sorted(glob.glob(pattern, recursive=True))
        files = [Path(name) for name in names if Path(name).is_file()]
        if not files:
            raise ValueError(f"no file matches {pattern}")
        for file in files:
            if not file.name.removesuffix(".gz").endswith(suffixes):
                raise ValueError(
                    f"{file}: expected {' or '.join(suffixes)}, each also .gz: convert it to .jsonl"
                )
            found.setdefault(file.resolve(), file)
    return list(found.values())


# --- the first pass -------------------------------------------------------------------------------


def survey(files: list[Path], config: Preparation, ngrams: Ngrams | None, work: Path) -> Survey:
    """Check every row; find its outcome, with digests in the folder `work`, and all types."""
    outcomes, types = bytearray(), dict[str, pyarrow.DataType | None]()
    rows, prompts = Digests(work / "rows"), Digests(work / "prompts")
    chunk, wanted = Chunk(), wanted_columns(config)
    for where, raw, row in standard_rows(files, config):
        if row is None:
            outcome, serialised, prompt = EMPTY, b"", b""
        else:
            try:
                serialised, prompt = content(row), question_of(row).encode()
                outcome = part_of(group_of(raw, row, config), config)
                chunk.add(laid_out(row, config, outcome, 0))
            except SettingError as error:
                raise error.at(where) from None
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            if ngrams is not None and next(shared(raw, ngrams), None):
                outcome = OVERLAPPING
        outcomes.append(outcome)
        rows.add(serialised)
        if config.group_key is not None:
            prompts.add(prompt)
        if chunk.is_full():
            find_types(types, chunk.take(), wanted)
    find_types(types, chunk.take(), wanted)
    if not outcomes:
        raise ValueError(f"{', '.join(map(str, files))}: no rows")
    result = Survey(np.frombuffer(outcomes, np.uint8), types)
    drop_duplicates(rows, result.outcomes)
    if config.group_key is not None:
        drop_prompts_of_both(prompts, result.outcomes)
    return result


@dataclass
class Chunk:
    """Rows collected to be examined or written together."""

    rows: list[Row] = field(default_factory=list)
    size: int = 0

    def add(self, row: Row) -> None:
        """Add a row."""
        self.rows.append(row)
        self.size += size_of(row)

    def is_full(self) -> bool:
        """Whether the rows should be taken before more are added."""
        return len(self.rows) >= CHUNK_ROWS or self.size >= CHUNK_SIZE

    def take(self) -> list[Row]:
        """Return the rows and empty the chunk."""
        taken, self.rows, self.size = self.rows, [], 0
        return taken


def size_of(value: Any) -> int:
    """Return the approximate number of characters in a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(size_of, value.values()))
    return sum(map(size_of, value)) if isinstance(value, list) else 8


def wanted_columns(config: Preparation) -> tuple[str, ...]:
    """Return the columns that are written whatever they hold."""
    return (*OWN_COLUMNS[config.format], *(config.keep or ()))


def find_types(
    types: dict[str, pyarrow.DataType | None], rows: list[Row], wanted: tuple[str, ...]
) -> None:
    """Widen each column's type in `types` to what these rows hold."""
    for name in dict.fromkeys(name for row in rows for name in row):
        known = types.get(name, pyarrow.null())
        if known is None or (known == NESTED and name not in wanted):
            continue
        values = [row.get(name) for row in rows]
        if name not in wanted and any(map(has_objects, values)):
            types[name] = NESTED  # not its fields: they could differ in every row
            continue
        try:
            new = pyarrow.array(values).type
            both = [pyarrow.schema([(name, known)]), pyarrow.schema([(name, new)])]
            types[name] = pyarrow.unify_schemas(both, promote_options="permissive").field(name).type
        except (pyarrow.ArrowException, OverflowError):
            types[name] = None


def has_objects(value: Any) -> bool:
    """Whether a value is an object or a list that contains one."""
    return isinstance(value, dict) or (isinstance(value, list) and any(map(has_objects, value)))


def summarise(result: Survey, config: Preparation) -> Prepared:
    """Count the outcomes; raise ValueError if no row is left to train on."""
    num_rows = len(result.outcomes)
    count = np.bincount(result.outcomes, minlength=6).tolist()
    reasons = {
        DUPLICATE: "equal another row",
        EMPTY: "have an empty prompt or answer",
        OVERLAPPING: f"overlap with {config.decontaminate}",
        IN_BOTH: "have a prompt that other groups have in the training part",
    }
    dropped = {reason: count[outcome] for outcome, reason in reasons.items() if count[outcome]}
    if not count[TRAIN]:
        why = "".join(f", {number:,} {reason}" for reason, number in dropped.items())
        raise ValueError(
            f"no row is left to train on: of {num_rows:,}, {count[VALIDATION]:,} are for "
            f"validation{why}"
        )
    kept = {name: count[part] for part, name in PARTS.items() if part == TRAIN or config.val_split}
    return Prepared(num_rows, kept, dropped, {}, 0.0, config.output_dir)


def schema_of(
    types: dict[str, pyarrow.DataType | None], config: Preparation, left_out: dict[str, str]
) -> pyarrow.Schema:
    """Return the columns to write; record in `left_out` the other ones, and why."""
    columns: list[tuple[str, pyarrow.DataType]] = []
    wanted = wanted_columns(config)
    for name in config.keep or ():
        if name not in types:
            raise SettingError("keep", f"no column {name!r}; the files have {', '.join(types)}")
    for name, dtype in types.items():
        if dtype is None and name in wanted:
            raise ValueError(
                f"{name} has values of different types, which no column can hold: give it one type"
            )
        if dtype is None:
            left_out[name] = "values of different types"
        elif name in wanted or is_simple(dtype):
            columns.append((name, dtype))
        else:
            empty = pyarrow.types.is_null(dtype)
            left_out[name] = "no values" if empty else "not simple: name it in keep to keep it"
    return pyarrow.schema(columns)


def is_simple(dtype: pyarrow.DataType) -> bool:
    """Whether a type is a primitive, a string, or a list of these."""
    if pyarrow.types.is_list(dtype):
        return is_simple(dtype.value_type)
    return bool(pyarrow.types.is_primitive(dtype) or pyarrow.types.is_string(dtype))


# --- the second pass ------------------------------------------------------------------------------


def write(
    files: list[Path], config: Preparation, outcomes: Any, schema: pyarrow.Schema, work: Path
) -> None:
    """Write train.parquet and validation.parquet in `work`, each only if it has rows."""
    chunks = {part: Chunk() for part in PARTS if (outcomes == part).any()}
    opened = {
        part: pyarrow.parquet.ParquetWriter(work / f"{PARTS[part]}.parquet", schema)
        for part in chunks
    }
    written = dict.fromkeys(PARTS, 0)

    def flush(part: int) -> None:
        rows = chunks[part].take()
        if rows:
            opened[part].write_table(pyarrow.Table.from_pylist(rows, schema))

    try:
        number = -1
        for number, (_, _, row) in enumerate(standard_rows(files, config)):
            part = int(outcomes[number]) if number < len(outcomes) else EMPTY
            if part not in PARTS:
                continue
            assert row is not None
            chunks[part].add(laid_out(row, config, part, written[part]))
            written[part] += 1
            if chunks[part].is_full():
                flush(part)
        if number + 1 != len(outcomes):
            raise ValueError("the files changed while they were read: run it again")
        for part in chunks:
            flush(part)
    finally:
        for writer in opened.values():
            writer.close()
