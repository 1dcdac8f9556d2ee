"""Metrics as sums and counts, so that means do not depend on micro-batches or ranks."""

from __future__ import annotations

import math
from collections.abc import Callable

Metrics = dict[str, tuple[float, float | None]]
"""name -> (sum, count); a plain sum has no count."""


def add_metrics(totals: Metrics, more: Metrics) -> None:
    """Add `more` to `totals`, name by name."""
    for name, (value, count) in more.items():
        before, count_before = totals.get(name, (0.0, 0.0))
        if name in totals and (choose := extreme(name)):
            totals[name] = choose(before, value), count
            continue
        totals[name] = (before + value, None if count is None else (count_before or 0.0) + count)


def extreme(name: str) -> Callable[..., float] | None:
    """Return max or min if the last component of a metric's path starts with that word."""
    word = name.rpartition("/")[2].split("_")[0]
    return {"max": max, "min": min}.get(word)


def combine(ranks: list[Metrics]) -> dict[str, float]:
    """Return means over all ranks from sums and counts; a plain sum if the count is None.

    A metric whose last path component starts with `max` or `min` is the extreme. A metric with a
    count of 0 is left out. A mean of squares, `X_square`, becomes the standard deviation of X.
    """
    combined: dict[str, float] = {}
    for name in dict.fromkeys(name for metrics in ranks for name in metrics):
        values = [metrics[name] for metrics in ranks if name in metrics]
        total, counts = sum(value for value, _ in values), [n for _, n in values if n is not None]
        if choose := extreme(name):
            combined[name] = choose(value for value, _ in values)
        elif not counts:
            combined[name] = total
        elif sum(counts) > 0:
            combined[name] = total / sum(counts)
    for name in [name for name in combined if name.endswith("_square")]:
        mean = name.removesuffix("_square")
        variance = combined.pop(name) - combined[mean] ** 2
        std = mean.removesuffix("mean") + "std" if mean.endswith("/mean") else f"{mean}_std"
        combined[std] = math.sqrt(max(0.0, variance))
    return combined
