"""Rows, and what all of their sources share: sampling, mixing, renaming and checking them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Row = dict[str, Any]
"""A row of data: column name -> value."""


def draw(rows: list[Row], most: int | None) -> list[Row]:
    """Return at most that many rows, a random but fixed choice in the order of the rows.

    The first rows or every n-th would not do: files are often sorted by label or alternate labels.
    """
    n = min(most or len(rows), len(rows))
    return [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), n))]


def mix(sources: list[tuple[list[Any], float]], seed: int) -> list[Any]:
    """Return the rows of several sources, each taken `weight` times (a fraction: a random part)."""
    mixed: list[Any] = []
    for rows, weight in sources:
        whole, part = int(weight), weight % 1
        mixed += rows * whole
        mixed += random.Random(seed).sample(rows, round(part * len(rows)))
    if not mixed:
        raise ValueError("data.weight leaves the mixture without rows")
    return mixed


def rename_columns(row: Row, columns: dict[str, str], source: str) -> Row:
    """Return the row with columns renamed (ours -> the file's); others stay, for rewards."""
    for ours, theirs in columns.items():
        if theirs not in row:
            swapped = f"; write {theirs}: {ours} (ours: the file's)" if ours in row else ""
            raise ValueError(
                f"{source}: no column {theirs!r}; the row has {', '.join(row)}{swapped}"
            )
    renamed = {ours: row[theirs] for ours, theirs in columns.items()}
    return {**{k: v for k, v in row.items() if k not in columns.values()}, **renamed}


def numbered(rows: Iterable[Row], source: object) -> Iterator[tuple[str, Row]]:
    """Return an iterator over rows, each with the location that names it in errors."""
    return ((f"{source}, row {number}", row) for number, row in enumerate(rows, 1))


def check_split(name: str, split: str, splits: Sequence[str]) -> None:
    """Raise ValueError for a split that the data set `name` does not have."""
    if split in splits:
        return
    if len(splits) > 1:
        raise ValueError(f"{name}: unknown split {split!r}: choose one of {', '.join(splits)}")
    fix = "use another data set in eval.data" if splits[0] == "train" else "it is for evaluation"
    raise ValueError(f"{name} has only the split {splits[0]}, not {split!r}: {fix}")


def check_texts(row: Row, columns: Sequence[str], where: str, blank: bool = False) -> None:
    """Raise ValueError unless each of `columns` is a string; a blank one needs `blank`."""
    for column in columns:
        if column not in row:
            raise ValueError(
                f"{where}: no column {column}; the row has {', '.join(row) or 'none'}; "
                "data.path must be the data set's own file"
            )
        if not isinstance(row[column], str) or not (blank or row[column].strip()):
            raise ValueError(
                f"{where}: column {column} must be a {'' if blank else 'non-blank '}string, "
                f"got {str(row[column])[:40]!r}; correct the row or remove it"
            )
