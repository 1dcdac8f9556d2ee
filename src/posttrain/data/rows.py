"""Rows, and what is asked of them wherever they come from."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Row = dict[str, Any]
"""A row of data: column name -> value."""


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
