"""Sweeps as they are written: `key=a,b` for a grid, `key=log(a,b)` for a search."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.common.files import short_hash
from posttrain.config.recipe import set_key
from posttrain.config.yaml_values import parse_value
from posttrain.runs.series.members import Member, member, series_name
from posttrain.runs.series.results import short_names
from posttrain.runs.series.state import resolved

MOST_RUNS = 1000
LONGEST_VALUE = 40
DISTRIBUTION = re.compile(r"\s*(log|uniform|int|choice)\s*\((.*)\)\s*$", re.DOTALL)


@dataclass(frozen=True)
class Value:
    """A value of a key, and how the user wrote it."""

    text: str
    value: Any


@dataclass(frozen=True)
class Axis:
    """A key that a sweep varies: over some values, or between two bounds."""

    key: str
    kind: str
    """choice, or log, uniform or int between `low` and `high`."""
    values: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0

    @property
    def words(self) -> str:
        """The axis as it can be written."""
        if self.kind == "choice":
            return f"{self.key}=choice({','.join(value.text for value in self.values)})"
        return f"{self.key}={self.kind}({self.low!r},{self.high!r})"

    @property
    def samples(self) -> list[Any]:
        """Values whose validity shows that of all others: each one, or the bounds and a middle."""
        if self.kind == "choice":
            return [value.value for value in self.values]
        if self.kind == "int":
            return [int(self.low), int(self.high)]
        share = math.sqrt(2) - 1  # no integer between two of them
        middle = self.low + share * (self.high - self.low)
        if self.kind == "log":
            middle = self.low * (self.high / self.low) ** share
        return [self.low, middle, self.high]


def read_axes(overrides: Sequence[str], search: bool) -> tuple[list[Axis], list[str]]:
    """Return the keys that are varied, and the overrides that hold for all runs.

    In a `search`, values may be distributions. Raises ValueError with one line for what is wrong.
    """
    axes, fixed = [], []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ValueError(f"override {override!r} is not of the form section.key=value")
        axis = read_axis(override, key.strip(), text, search)
        if axis is None:
            fixed.append(override)
        else:
            axes.append(axis)
    keys = [axis.key for axis in axes] + [override.partition("=")[0] for override in fixed]
    for key, count in Counter(keys).items():
        if count > 1:
            raise ValueError(f"{key} is given {count} times: write all of its values after one =")
        inner = [other for other in keys if other.startswith(f"{key}.")]
        if inner:
            raise ValueError(f"{key} and {inner[0]} are both given: one is part of the other")
    if not axes:
        example = (
            "trainer.learning_rate=log(1e-6,1e-3)" if search else "trainer.learning_rate=1e-5,2e-5"
        )
        raise ValueError(f"a sweep needs a key with several values, such as {example}")
    return axes, fixed


def read_axis(override: str, key: str, text: str, search: bool) -> Axis | None:
    """Return the axis that an override describes; None if it has one value."""
    if written := DISTRIBUTION.match(text):
        if not search:
            raise ValueError(
                f"override {override!r}: {written[1]}(...) is for a search: sweep with the search "
                "optuna, or list the values with commas"
            )
        return distribution(override, key, written[1], written[2])
    items = split_values(override, text)
    if len(items) == 1:
        return None
    return Axis(key, "choice", tuple(Value(item, parse_value(override, item)) for item in items))


def distribution(override: str, key: str, kind: str, inside: str) -> Axis:
    """Return the axis of `log(a,b)`, `uniform(a,b)`, `int(a,b)` or `choice(x,y)`."""
    items = split_values(override, inside)
    values = tuple(Value(item, parse_value(override, item)) for item in items)
    if kind == "choice":
        if len(values) < 2:
            raise ValueError(f"override {override!r}: choice needs two values or more")
        return Axis(key, kind, values)
    numbers = [value.value for value in values if _is_number(value.value)]
    if len(values) != 2 or len(numbers) != 2:
        raise ValueError(f"override {override!r}: expected {kind}(LOWEST,HIGHEST), two numbers")
    low, high = numbers
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"override {override!r}: the lowest value comes first: {low} < {high}?")
    if kind == "log" and low <= 0:
        raise ValueError(f"override {override!r}: log needs a lowest value above 0, got {low}")
    if kind == "int" and not all(isinstance(number, int) for number in numbers):
        raise ValueError(f"override {override!r}: int needs two integers, got {low} and {high}")
    return Axis(key, kind, (), float(low), float(high))


def split_values(override: str, text: str) -> list[str]:
    """Return the values between the commas that are neither in quotes nor in brackets."""
    items, start, depth, quote = [], 0, 0, ""
    fresh = True  # whether the next character is the first of a value
    i = 0
    while i < len(text):
        char = text[i]
        if quote:
            doubled = char == quote == "'" == text[i + 1 : i + 2]
            if doubled or (char == "\\" and quote == '"'):
                i += 1
            elif char == quote:
                quote = ""
        elif char in "\"'" and fresh:
            quote, fresh = char, False
        elif char in "[{" and (fresh or depth):
            depth, fresh = depth + 1, True
        elif char in "]}" and depth:
            depth, fresh = depth - 1, False
        elif char == "," and depth == 0:
            items.append(text[start:i].strip())
            start, fresh = i + 1, True
        elif depth and char in ",:":
            fresh = True
        elif not char.isspace():
            fresh = False
        i += 1
    if quote or depth:
        raise ValueError(f"override {override!r}: a quote or a bracket is not closed")
    items.append(text[start:].strip())
    if len(items) > 1 and "" in items:
        raise ValueError(f"override {override!r}: a value is missing beside a comma")
    return items


def grid(
    tree: Mapping[str, Any], recipe: str, axes: Sequence[Axis], fixed: Sequence[str]
) -> list[Member]:
    """Return a run for each combination of values; the last key varies fastest.

    `tree` is the recipe with the `fixed` overrides. Raises ValueError if a run's config is wrong,
    or if two runs are the same.
    """
    count = math.prod(len(axis.values) for axis in axes)
    if count > MOST_RUNS:
        raise ValueError(
            f"the grid has {count:,} runs, more than {MOST_RUNS:,}: leave out values, or sweep "
            "with the search optuna"
        )
    keys = [axis.key for axis in axes]
    points = list(itertools.product(*(axis.values for axis in axes)))
    labels = labels_of(keys, points)
    name = f"{series_name(tree, recipe)}-sweep"
    members = []
    for label, point in zip(labels, points):
        params = {key: value.value for key, value in zip(keys, point)}
        overrides = [
            *fixed,
            *(f"{key}={value.text}" for key, value in zip(keys, point)),
        ]
        members.append(member_at(tree, recipe, label, name, params, overrides))
    refuse_equal(members)
    return members


def member_at(
    tree: Mapping[str, Any],
    recipe: str,
    label: str,
    name: str,
    params: Mapping[str, Any],
    overrides: Sequence[str],
) -> Member:
    """Return the run of a recipe's tree with the values `params`."""
    own = copy.deepcopy(dict(tree))
    for key, value in params.items():
        set_key(own, key, copy.deepcopy(value), f"{key}={value}")
    made = member(own, f"{recipe}, {label}", label, name, params)
    return Member(label, made.config, made.params, list(overrides))


def refuse_equal(members: Sequence[Member]) -> None:
    """Raise ValueError, naming them, if two runs have the same config."""
    seen: dict[str, str] = {}
    for one in members:
        tree = resolved(one)
        tree["trainer"].pop("run_name")
        written = json.dumps(tree, sort_keys=True)
        words = ", ".join(f"{key}={value}" for key, value in one.params.items())
        if written in seen:
            raise ValueError(f"{seen[written]} and {words} are the same run: leave out one of them")
        seen[written] = words


def labels_of(keys: Sequence[str], points: Sequence[Sequence[Value]]) -> list[str]:
    """Return a name for each run: the last part of each key, and its value."""
    names = short_names(keys)
    labels = [
        "_".join(f"{name}-{slug(value.value)}" for name, value in zip(names, point))
        for point in points
    ]
    twice = {label for label, count in Counter(labels).items() if count > 1}
    long = {label for label in labels if len(label) > 120}
    return [
        f"{label[:100]}_{short_hash([v.text for v in point])[:6]}"
        if label in twice | long
        else label
        for label, point in zip(labels, points)
    ]


def slug(value: Any) -> str:
    """Return a value as a part of a file name."""
    if isinstance(value, str):
        text = value.rstrip("/").rpartition("/")[2] or value
    elif isinstance(value, float):
        text = repr(float(value))
    else:
        text = json.dumps(value, default=str)
    clean = re.sub(r"[^\w.+-]+", "-", text).strip("-") if not _is_number(value) else text
    return clean[:LONGEST_VALUE] or "empty"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
