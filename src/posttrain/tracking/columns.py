"""The metrics of a run as columns: a number of a long run takes 16 bytes, and not some 200."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

Points = list[tuple[int, float]]


@dataclass
class Column:
    """The values of a metric by step; NaN stands for a value that is no number."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))
    whole: bool = True
    """Whether every value is an integer."""

    def add(self, step: int, value: float | None) -> None:
        """Append a value; None is none."""
        self.steps.append(step)
        self.values.append(math.nan if value is None else value)
        self.whole = self.whole and isinstance(value, int)

    def items(self) -> Iterator[tuple[int, float]]:
        """Yield steps in order with their values; of a step's values the one that came last."""
        pairs = zip(self.steps, self.values)
        if any(a >= b for a, b in zip(self.steps, self.steps[1:])):
            pairs = iter(sorted(dict(pairs).items()))  # type: ignore[assignment]
        return pairs

    def points(self) -> Points:
        """Return the finite values with their steps; integers as such."""
        finite = ((step, value) for step, value in self.items() if math.isfinite(value))
        return [(step, int(value) if self.whole else value) for step, value in finite]

    def gaps(self) -> list[int]:
        """Return the steps whose value is no finite number."""
        return [step for step, value in self.items() if not math.isfinite(value)]


def columns_of(lines: Iterable[tuple[int, dict[str, Any]]]) -> dict[str, Column]:
    """Return a column for each metric of lines that come with their steps."""
    columns: dict[str, Column] = {}
    for step, line in lines:
        for name, value in line.items():
            if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
                columns.setdefault(name, Column()).add(step, value)
    return columns
