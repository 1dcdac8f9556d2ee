"""`posttrain compare`: the same problems by two models, with a paired test for each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from posttrain.evaluation.statistics import sign_flip_test
from posttrain.evaluation.store import read_results, results_file

LIKE = (
    "temperature", "num_samples", "max_new_tokens", "shots", "split", "reward", "stop_texts",
    "template", "system_prompt", "prompt_template", "top_p", "top_k", "dtype",
)  # fmt: skip
"""Settings in which results that are compared should be alike."""


@dataclass(frozen=True)
class Comparison:
    """Over the problems that both results have."""

    task: str
    num_problems: int
    accuracy_a: float
    accuracy_b: float
    only_a: int
    """Problems that A solves and B does not; of several completions, those that A solves more
    often."""
    only_b: int
    p_value: float
    test: str
    notes: list[str]


def compare_files(a: Path, b: Path) -> tuple[list[Comparison], list[str]]:
    """Of each task that both hold with outcomes of the same problems, and the other tasks' names.

    Raises ValueError where there is no such task.
    """
    first, second = _results(a), _results(b)
    both = [
        task for task in first if "outcomes" in first[task] and "outcomes" in second.get(task, {})
    ]
    if not both:
        raise ValueError(
            f"no task in common with outcomes by problem: {results_file(a)} has "
            f"{', '.join(first)}, {results_file(b)} has {', '.join(second)}"
        )
    common = [t for t in both if first[t]["outcomes"].keys() & second[t]["outcomes"].keys()]
    if not common:
        raise ValueError(f"{', '.join(both)}: the two results have no problem in common")
    left_out = [task for task in {**first, **second} if task not in common]
    return [compare_task(task, first[task], second[task]) for task in common], left_out


def compare_task(task: str, a: dict[str, Any], b: dict[str, Any]) -> Comparison:
    common = [problem for problem in a["outcomes"] if problem in b["outcomes"]]
    solved_a = [solved(a["outcomes"][problem]) for problem in common]
    solved_b = [solved(b["outcomes"][problem]) for problem in common]
    differences = [x - y for x, y in zip(solved_a, solved_b)]
    single = all(len(r["outcomes"][problem]) == 1 for r in (a, b) for problem in common)
    notes = [
        f"{name} is {a.get(name)} in A and {b.get(name)} in B"
        for name in LIKE
        if a.get(name) != b.get(name)
    ]
    for side, result in (("A", a), ("B", b)):
        left_out = len(result["outcomes"]) - len(common)
        if left_out:
            notes.append(f"{left_out} problems that only {side} has are left out")
    return Comparison(
        task,
        len(common),
        fmean(map(float, solved_a)),
        fmean(map(float, solved_b)),
        sum(d > 0 for d in differences),
        sum(d < 0 for d in differences),
        sign_flip_test(differences),
        "exact McNemar" if single else "exact sign flips of problem means",
        notes,
    )


def solved(outcome: str) -> Fraction:
    """The share of a problem's completions that are right."""
    return Fraction(outcome.count("1"), len(outcome))


def table(comparisons: Sequence[Comparison]) -> Table:
    """Narrow enough for 80 columns."""
    shown = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("task", "problems", "A", "B", "B - A", "only A", "only B", "p"):
        shown.add_column(name, justify="left" if name == "task" else "right", no_wrap=True)
    for one in comparisons:
        shown.add_row(
            one.task,
            f"{one.num_problems:,}",
            f"{100 * one.accuracy_a:.1f} %",
            f"{100 * one.accuracy_b:.1f} %",
            f"{100 * (one.accuracy_b - one.accuracy_a):+.1f}",
            f"{one.only_a:,}",
            f"{one.only_b:,}",
            f"{one.p_value:.2g}",
        )
    return shown


def _results(place: Path) -> dict[str, dict[str, Any]]:
    results = read_results(place)
    if not results:
        raise ValueError(f"{results_file(place)}: no results of posttrain eval there")
    return results
