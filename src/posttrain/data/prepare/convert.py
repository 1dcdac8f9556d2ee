"""`posttrain data prepare`: files of rows to train.parquet and validation.parquet.

Two passes, so that memory does not grow with the files. The first checks every row, finds the type
of every column, and puts a digest of every row on disk; then it is known what is kept, and the
second writes it. A malformed row is found before anything is written.

A row's part is decided by a keyed hash of its group alone: the problem that --group-key names, or
what the user asks before the first answer, whatever its case and spaces. So equal prompts lie in
one part, and neither the order of rows and files nor other rows change the part of a row.
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
from posttrain.common.files import sha256
from posttrain.data.files import STREAMED, SUFFIXES
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

# rows that are held at once: of so many, or of so many characters
CHUNK_ROWS, CHUNK_SIZE = 10_000, 2**22
NESTED = pyarrow.struct([])


@dataclass
class Survey:
    """What the first pass finds."""

    fates: Any  # [N] uint8
    types: dict[str, pyarrow.DataType | None]
    """Of each column; None: no type holds all of its values."""


@dataclass
class Prepared:
    num_rows: int
    kept: dict[str, int]
    dropped: dict[str, int]
    left_out: dict[str, str]
    """Columns that are not in the files, and why."""
    seconds: float
    output_dir: Path

    def lines(self) -> Iterator[str]:
        yield f"{self.num_rows:,} rows, {self.num_rows / self.seconds:,.0f} rows/s"
        for part, count in self.kept.items():
            file = self.output_dir / f"{part}.parquet"
            yield f"{part:<12}{count:>12,}" + (f"  {file}" if count else "  no file")
        for reason, count in self.dropped.items():
            yield f"dropped     {count:>12,}  {reason}"
        for name, reason in self.left_out.items():
            yield f"left out    {name}: {reason}"


def prepare(patterns: list[str], config: Preparation) -> Prepared:
    """Write the two files. ValueError names file and line of a row that is not as it should be."""
    begin = time.perf_counter()
    check(config)
    files = expand(patterns)
    targets = [config.output_dir / f"{name}.parquet" for name in PARTS.values()]
    for file in files:
        if file.resolve() in [target.resolve() for target in targets]:
            raise SettingError("output_dir", f"{file} would be overwritten: give another")
    held_out = expand([config.decontaminate], SUFFIXES) if config.decontaminate else []
    ngrams = read_ngrams(held_out) if held_out else None
    existed = config.output_dir.is_dir()
    work = config.output_dir / ".prepare"
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    work.mkdir(parents=True)
    try:
        found = survey(files, config, ngrams, work)
        prepared = summarise(found, config)
        provenance = {
            "files": [
                {"path": str(f), "bytes": f.stat().st_size, "sha256": sha256(f)} for f in files
            ],
            "options": {k: v for k, v in asdict(config).items() if k != "output_dir"},
            "num_rows": prepared.num_rows,
            "kept": prepared.kept,
            "dropped": prepared.dropped,
        }
        schema = schema_of(found.types, config, prepared.left_out)
        metadata = {"posttrain": json.dumps(provenance)}
        write(files, config, found.fates, schema.with_metadata(metadata), work)
        for target in targets[::-1]:  # never a new file beside an old one: they could share prompts
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
    if config.format not in OWN_COLUMNS:
        known = ", ".join(OWN_COLUMNS)
        raise SettingError("format", f"{config.format!r} is not known: choose one of {known}")
    if not 0 <= config.val_split < 1:
        problem = f"must be at least 0 and below 1; found {config.val_split}"
        raise SettingError("val_split", problem)


def expand(patterns: list[str], suffixes: tuple[str, ...] = STREAMED) -> list[Path]:
    """Files and globs to files, each once; a glob's in the order of their names."""
    found: dict[Path, Path] = {}
    for pattern in patterns:
        place = Path(pattern)
        if place.is_dir():
            raise ValueError(f"{pattern} is a folder: name its files, such as {pattern}/*.jsonl")
        names = [pattern] if place.is_file() else sorted(glob.glob(pattern, recursive=True))
        files = [Path(name) for name in names if Path(name).is_file()]
        if not files:
            raise ValueError(f"no file matches {pattern}")
        for file in files:
            if not file.name.removesuffix(".gz").endswith(suffixes):
                raise ValueError(
                    f"{file}: expected {' or '.join(suffixes)}, each also .gz: write it as .jsonl"
                )
            found.setdefault(file.resolve(), file)
    return list(found.values())


# --- the first pass -------------------------------------------------------------------------------


def survey(files: list[Path], config: Preparation, ngrams: Ngrams | None, work: Path) -> Survey:
    fates, types = bytearray(), dict[str, pyarrow.DataType | None]()
    rows, prompts = Digests(work / "rows"), Digests(work / "prompts")
    chunk, wanted = Chunk(), wanted_columns(config)
    for where, raw, row in standard_rows(files, config):
        if row is None:
            fate, known, prompt = EMPTY, b"", b""
        else:
            try:
                known, prompt = content(row), question_of(row).encode()
                fate = part_of(group_of(raw, row, config), config)
                chunk.add(laid_out(row, config, fate, 0))
            except SettingError as error:
                raise error.at(where) from None
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            if ngrams is not None and next(shared(raw, ngrams), None):
                fate = OVERLAPPING
        fates.append(fate)
        rows.add(known)
        if config.group_key is not None:
            prompts.add(prompt)
        if chunk.is_full():
            find_types(types, chunk.take(), wanted)
    find_types(types, chunk.take(), wanted)
    if not fates:
        raise ValueError(f"{', '.join(map(str, files))}: no rows")
    found = Survey(np.frombuffer(fates, np.uint8), types)
    drop_duplicates(rows, found.fates)
    if config.group_key is not None:
        drop_prompts_of_both(prompts, found.fates)
    return found


@dataclass
class Chunk:
    """Rows that wait to be looked at or written together."""

    rows: list[Row] = field(default_factory=list)
    size: int = 0

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.size += size_of(row)

    def is_full(self) -> bool:
        return len(self.rows) >= CHUNK_ROWS or self.size >= CHUNK_SIZE

    def take(self) -> list[Row]:
        taken, self.rows, self.size = self.rows, [], 0
        return taken


def size_of(value: Any) -> int:
    """Characters, about."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(size_of, value.values()))
    return sum(map(size_of, value)) if isinstance(value, list) else 8


def wanted_columns(config: Preparation) -> tuple[str, ...]:
    """Columns that are in the files whatever they hold."""
    return (*OWN_COLUMNS[config.format], *(config.keep or ()))


def find_types(
    types: dict[str, pyarrow.DataType | None], rows: list[Row], wanted: tuple[str, ...]
) -> None:
    """Widen each column's type to what these rows hold."""
    for name in dict.fromkeys(name for row in rows for name in row):
        known = types.get(name, pyarrow.null())
        if known is None or (known == NESTED and name not in wanted):
            continue
        values = [row.get(name) for row in rows]
        if name not in wanted and any(map(has_objects, values)):
            types[name] = NESTED  # not its fields: they could be others in every row
            continue
        try:
            found = pyarrow.array(values).type
            both = [pyarrow.schema([(name, known)]), pyarrow.schema([(name, found)])]
            types[name] = pyarrow.unify_schemas(both, promote_options="permissive").field(name).type
        except (pyarrow.ArrowException, OverflowError):
            types[name] = None


def has_objects(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(has_objects, value)))


def summarise(found: Survey, config: Preparation) -> Prepared:
    count = np.bincount(found.fates, minlength=6).tolist()
    reasons = {
        DUPLICATE: "equal another row",
        EMPTY: "have an empty prompt or answer",
        OVERLAPPING: f"overlap with {config.decontaminate}",
        IN_BOTH: "have a prompt that other groups have in the training part",
    }
    dropped = {reason: count[fate] for fate, reason in reasons.items() if count[fate]}
    if not count[TRAIN]:
        why = "".join(f", {number:,} {reason}" for reason, number in dropped.items())
        raise ValueError(
            f"no row is left to train on: of {len(found.fates):,}, {count[VALIDATION]:,} are for "
            f"validation{why}"
        )
    kept = {name: count[part] for part, name in PARTS.items() if part == TRAIN or config.val_split}
    return Prepared(len(found.fates), kept, dropped, {}, 0.0, config.output_dir)


def schema_of(
    types: dict[str, pyarrow.DataType | None], config: Preparation, left_out: dict[str, str]
) -> pyarrow.Schema:
    """The columns of the files. Those that are not in them are noted in `left_out`."""
    columns: list[tuple[str, pyarrow.DataType]] = []
    wanted = wanted_columns(config)
    for name in config.keep or ():
        if name not in types:
            raise SettingError("keep", f"no column {name!r}; found {', '.join(types)}")
    for name, kind in types.items():
        if kind is None and name in wanted:
            raise ValueError(
                f"{name} has values of different types, which no column can hold: give it one type"
            )
        if kind is None:
            left_out[name] = "values of different types"
        elif name in wanted or is_simple(kind):
            columns.append((name, kind))
        else:
            empty = pyarrow.types.is_null(kind)
            left_out[name] = "no values" if empty else "not simple: name it in keep to keep it"
    return pyarrow.schema(columns)


def is_simple(kind: pyarrow.DataType) -> bool:
    if pyarrow.types.is_list(kind):
        return is_simple(kind.value_type)
    return bool(pyarrow.types.is_primitive(kind) or pyarrow.types.is_string(kind))


# --- the second pass ------------------------------------------------------------------------------


def write(
    files: list[Path], config: Preparation, fates: Any, schema: pyarrow.Schema, work: Path
) -> None:
    """train.parquet and validation.parquet in `work`, those of them that have rows."""
    chunks = {part: Chunk() for part in PARTS if (fates == part).any()}
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
            part = int(fates[number]) if number < len(fates) else EMPTY
            if part not in PARTS:
                continue
            assert row is not None
            chunks[part].add(laid_out(row, config, part, written[part]))
            written[part] += 1
            if chunks[part].is_full():
                flush(part)
        if number + 1 != len(fates):
            raise ValueError("the files changed while they were read: run it again")
        for part in chunks:
            flush(part)
    finally:
        for writer in opened.values():
            writer.close()
