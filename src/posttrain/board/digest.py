"""A metrics.jsonl in bounded memory: for every metric, sums and extremes of stretches of steps."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posttrain.board.growing import Lines
from posttrain.runs.listing import LARGEST, is_number, is_step
from posttrain.tracking.report import OF_LABELS

MOST = 1200  # stretches of a metric; twice as wide ones take their place when there are more
PREVIEW_LINES = 1000
PREVIEW_BYTES = 16 << 20  # fewer lines are read if they are long

Columns = NDArray[np.float64]
"""[7, n]: index of the stretch, number of values, and sums of values, steps and seconds, then the
lowest and the highest value."""
INDEX, COUNT, SUM, STEPS, SECONDS, LOW, HIGH = range(7)
NUMBERS = {float, int}
SUMMED = slice(COUNT, SECONDS + 1)


@dataclass
class Digest:
    """The metrics of a run, each over stretches of `width` steps."""

    offset: int = 0
    """Bytes of the file that it covers."""
    tail: bytes = b""
    """The last of these."""
    width: int = 1
    begun: float | None = None
    """Time of the file's first line, in seconds since 1970."""
    last_step: int = 0
    metrics: dict[str, Columns] = field(default_factory=dict)
    places: dict[int, int] = field(default_factory=dict)
    """Offset of the first line of each stretch."""
    labelled: dict[int, int] = field(default_factory=dict)
    """Offset of the line of each evaluated step that has scores of single labels."""

    def add(self, lines: Lines) -> None:
        """Take in the next lines; those that are damaged are left out."""
        # lines with the same names make one array: a value at a time would take three times as long
        rows: defaultdict[tuple[str, ...], list[list[Any]]] = defaultdict(list)
        of_labels: dict[tuple[str, ...], bool] = {}
        for offset, line in lines:
            try:
                values = json.loads(line)
                step, moment = values.pop("step"), values.pop("time", None)
            except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
                continue
            if not is_step(step):
                continue
            moment = moment if is_number(moment) else self.begun
            if self.begun is None:
                self.begun = moment
            self.last_step = max(self.last_step, step)
            self.places.setdefault(step // self.width, offset)
            if not set(map(type, values.values())) <= NUMBERS:
                values = {k: value for k, value in values.items() if type(value) in NUMBERS}
            names = tuple(values)
            if names not in rows:
                of_labels[names] = any(map(OF_LABELS.match, names))
            if of_labels[names]:
                self.labelled[step] = offset
            seconds = 0.0 if moment is None or self.begun is None else moment - self.begun
            rows[names].append([step, seconds, *values.values()])
        self._merge(rows)
        while len(self.places) > 2 * MOST:
            self._widen()
        while len(self.labelled) > 2 * MOST:
            self.labelled = dict(list(self.labelled.items())[::2])

    def _merge(self, rows: Mapping[tuple[str, ...], list[list[Any]]]) -> None:
        """Add lines, as step, seconds and values under the same names, to the stretches."""
        new: defaultdict[str, list[Columns]] = defaultdict(list)
        for names, entries in rows.items():
            try:
                table = np.array(entries, dtype=np.float64)
            except OverflowError:  # a whole number beyond any float
                table = np.array(
                    [[x if abs(x) < LARGEST else math.inf for x in row] for row in entries]
                )
            steps, seconds, *columns = table.T
            for name, values in zip(names, columns):
                if OF_LABELS.match(name):
                    continue
                good = np.abs(values) < LARGEST
                at, v = steps[good], values[good]
                if len(v):
                    whole = [at // self.width, np.ones_like(v), v, at, seconds[good], v, v]
                    new[name].append(np.stack(whole))
        for name, parts in new.items():
            old = [self.metrics[name]] if name in self.metrics else []
            self.metrics[name] = joined(np.concatenate([*old, *parts], axis=1))

    def _widen(self) -> None:
        self.width *= 2
        for name, columns in self.metrics.items():
            columns[INDEX] //= 2
            self.metrics[name] = joined(columns)
        places: dict[int, int] = {}
        for index, offset in self.places.items():
            places.setdefault(index // 2, offset)
        self.places = places

    def curve(self, name: str, start: int = 0, end: int | None = None) -> dict[str, Any] | None:
        """Return a metric as the page's curve, within some steps; None if there is no such metric.

        Points of several steps have their mean, and the extremes in `low` and `high`.
        """
        columns = self.metrics.get(name)
        if columns is None:
            return None
        inside = (columns[INDEX] + 1) * self.width > start
        if end is not None:
            inside &= columns[INDEX] * self.width <= end
        columns = columns[:, inside]
        count = np.maximum(columns[COUNT], 1)
        steps = columns[STEPS] / count
        single = bool((columns[COUNT] == 1).all())
        return {
            "steps": short(steps),
            "mean": short(columns[SUM] / count),
            "low": None if single else short(columns[LOW]),
            "high": None if single else short(columns[HIGH]),
            "tokens": self._tokens(steps),
            "seconds": short(columns[SECONDS] / count),
        }

    def _tokens(self, steps: NDArray[np.float64]) -> list[float] | None:
        """Return the tokens trained on before each step's end; None if they are not counted."""
        counted = self.metrics.get("num_tokens")
        if counted is None:
            return None
        known = np.concatenate([[0.0], counted[STEPS] / counted[COUNT]])
        tokens = np.concatenate([[0.0], counted[SUM] / counted[COUNT]])
        return short(np.interp(steps, known, tokens))


def joined(columns: Columns) -> Columns:
    """Return columns with one entry for each stretch, in order."""
    order = np.argsort(columns[INDEX], kind="stable")
    columns = columns[:, order]
    starts = np.flatnonzero(np.diff(columns[INDEX], prepend=-1.0))
    result = columns[:, starts]
    result[SUMMED] = np.add.reduceat(columns[SUMMED], starts, axis=1)
    result[LOW] = np.minimum.reduceat(columns[LOW], starts)
    result[HIGH] = np.maximum.reduceat(columns[HIGH], starts)
    return result


def short(values: NDArray[np.float64]) -> list[float]:
    """Return values to seven digits, whole ones without a point."""
    return [int(x) if x == int(x) else float(f"{x:.7g}") for x in values.tolist()]


def preview(file: Path) -> Digest:
    """Return a digest of single lines spread over a large file, in a fraction of a second."""
    size = os.path.getsize(file)
    digest, lines, num_bytes = Digest(), {}, 0
    # read backwards, the bits of a number jump to and fro: lines spread out, however few there are
    order = sorted(range(PREVIEW_LINES), key=lambda i: f"{i:010b}"[::-1])
    with file.open("rb") as handle:
        for i in order:
            start = handle.seek(size * i // PREVIEW_LINES)
            if start:
                handle.readline()  # the rest of a line
            place = handle.tell()
            line = handle.readline()
            if line.endswith(b"\n"):
                lines[place] = line
            num_bytes += place + len(line) - start
            if num_bytes > PREVIEW_BYTES:
                break
    digest.add(sorted(lines.items()))
    return digest
