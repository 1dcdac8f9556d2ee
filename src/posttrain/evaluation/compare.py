"""`posttrain compare`: two models on the same problems, with a paired test for each task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from posttrain.common.display import preformatted, table_as_html, table_as_text
from posttrain.evaluation.statistics import sign_flip_test
from posttrain.evaluation.store import read_results, results_file

SAME_SETTINGS = (
    "temperature",
    "num_samples",
    "max_new_tokens",
    "shots",
    "split",
    "reward",
    "stop_texts",
    "template",
    "system_prompt",
    "prompt_template",
    "top_p",
    "top_k",
    "dtype",
)
"""Settings that should be equal in both results; a difference is noted."""


@dataclass(frozen=True)
class Comparison:
    """Two results of a task, over the problems that both have."""

    task: str
    """Its name."""
    num_problems: int
    """Problems that both have."""
    accuracy_a: float
    """Share of these that A solves."""
    accuracy_b: float
    """Share of these that B solves."""
    only_a: int
    """Problems that A solves and B does not; with several completions, those that A solves more
    often."""
    only_b: int
    """The same for B."""
    p_value: float
    """Probability of a difference at least this large if both were equally good, two-sided."""
    test: str
    """Name of the test."""
    notes: list[str]
    """Settings that differ, and problems that only one has."""


class Comparisons(dict[str, Comparison]):
    """Comparisons by task; a notebook shows the table, the tests and the notes."""

    def __init__(self, compared: Mapping[str, Comparison], left_out: Sequence[str] = ()) -> None:
        super().__init__(compared)
        self.left_out = list(left_out)
        """Tasks without a problem that has outcomes in both results."""

    def __repr__(self) -> str:
        return "\n".join([table_as_text(table(list(self.values()))), *lines(self)])

    def _repr_html_(self) -> str:
        return table_as_html(table(list(self.values()))) + preformatted(lines(self))


def lines(comparisons: Comparisons) -> Iterator[str]:
    """Yield what the table lacks, as lines: tasks left out, the tests, and notes."""
    for task in comparisons.left_out:
        yield f"note: {task}: not compared, as no problem has outcomes in both results"
    for result in comparisons.values():
        yield f"{result.task}: p by {result.test}"
        for note in result.notes:
            yield f"note: {result.task}: {note}"


def compare_files(a: Path, b: Path) -> Comparisons:
    """Return the comparisons of two files of results, or of the results in two folders."""
    return compare_results(_results(a), _results(b), str(results_file(a)), str(results_file(b)))


def compare_results(
    first: Mapping[str, dict[str, Any]],
    second: Mapping[str, dict[str, Any]],
    first_name: str = "A",
    second_name: str = "B",
) -> Comparisons:
    """Return the comparisons of two models' results by task; the names are for messages.

    A task is compared if both have outcomes of the same problems. Raises ValueError if none is.
    """
    both = [task for task in first if _has_outcomes(first, task) and _has_outcomes(second, task)]
    if not both:
        raise ValueError(
            "the two results have no task in common with outcomes by problem: "
            f"{first_name} has {', '.join(first) or 'none'}, "
            f"{second_name} has {', '.join(second) or 'none'}"
        )
    common = [t for t in both if first[t]["outcomes"].keys() & second[t]["outcomes"].keys()]
    if not common:
        raise ValueError(f"{', '.join(both)}: the two results have no problem in common")
    left_out = [task for task in {**first, **second} if task not in common]
    compared = {task: compare_task(task, first[task], second[task]) for task in common}
    return Comparisons(compared, left_out)


def compare_task(task: str, a: dict[str, Any], b: dict[str, Any]) -> Comparison:
    """Return the comparison of a task over the problems that both results have."""
    common = [problem for problem in a["outcomes"] if problem in b["outcomes"]]
    solved_a = [solved(a["outcomes"][problem]) for problem in common]
    solved_b = [solved(b["outcomes"][problem]) for problem in common]
    differences = [x - y for x, y in zip(solved_a, solved_b)]
    single = all(len(r["outcomes"][problem]) == 1 for r in (a, b) for problem in common)
    notes = [
        f"{name} is {a.get(name)} in A and {b.get(name)} in B"
        for name in SAME_SETTINGS
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
    """Return the share of a problem's completions that are right, from a string of 0s and 1s."""
    return Fraction(outcome.count("1"), len(outcome))


def table(comparisons: Sequence[Comparison]) -> Table:
    """Return the comparisons as a table that fits into 80 columns."""
    output = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("task", "problems", "A", "B", "B - A", "only A", "only B", "p"):
        output.add_column(name, justify="left" if name == "task" else "right", no_wrap=True)
    for row in comparisons:
        output.add_row(
            row.task,
            f"{row.num_problems:,}",
            f"{100 * row.accuracy_a:.1f} %",
            f"{100 * row.accuracy_b:.1f} %",
            f"{100 * (row.accuracy_b - row.accuracy_a):+.1f}",
            f"{row.only_a:,}",
            f"{row.only_b:,}",
            f"{row.p_value:.2g}",
        )
    return output


def _results(path: Path) -> dict[str, dict[str, Any]]:
    results = read_results(path)
    if not results:
        raise ValueError(f"{results_file(path)} has no results of posttrain eval")
    return results


def _has_outcomes(results: Mapping[str, Any], task: str) -> bool:
    """Whether a task's result has the outcomes of problems, each at least one 0 or 1."""
    result = results.get(task)
    outcomes = result.get("outcomes") if isinstance(result, Mapping) else None
    return isinstance(outcomes, Mapping) and all(
        isinstance(outcome, str) and outcome for outcome in outcomes.values()
    )
