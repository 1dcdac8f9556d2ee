"""Console output of `posttrain eval`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from posttrain.common.console import CONSOLE
from posttrain.common.display import preformatted, table_as_html, table_as_text

TABLE_FIGURES = ("accuracy", "truncated", "parse_failures")
# two are settings; the verdicts, which are printed, tell more than mean_score
NOT_SHOWN = ("mean_score", "temperature", "top_p")


class Results(dict[str, dict[str, Any]]):
    """Results by task; a notebook shows the table, and not every problem's outcome."""

    def __repr__(self) -> str:
        text = [table_as_text(table(self))] if _have_accuracy(self) else []
        return "\n".join([*text, *lines(self)]) or "no results"

    def _repr_html_(self) -> str:
        return (table_as_html(table(self)) if _have_accuracy(self) else "") + preformatted(
            lines(self) if self else ["no results"]
        )


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print results by task: the table, the other figures, verdicts, and notes."""
    if _have_accuracy(results):
        CONSOLE.print(table(results))
    for line in lines(results):
        CONSOLE.print(line, markup=False)


def lines(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield what the table lacks, as lines: the other figures, verdicts, and notes."""
    for task, result in results.items():
        yield from lines_of(task, result)
        if verdicts := result.get("verdicts"):
            counts = ", ".join(f"{name} {number:,}" for name, number in verdicts.items())
            yield f"{task}: {counts}"
        if dropped := result.get("dropped_prompts", result.get("dropped_rows")):
            yield f"note: {task}: {dropped} problems left out: too long for the model"


def lines_of(task: str, result: dict[str, Any]) -> list[str]:
    """Return a line for each figure that is not in the table, with its interval."""
    figures = []
    for name, value in result.items():
        if not isinstance(value, float) or name in TABLE_FIGURES + NOT_SHOWN:
            continue
        if name == "unscored" and value == 0:
            continue
        low, high = result.get(f"{name}_ci95", (None, None))
        interval = "" if low is None else f"  [{low:.4f}, {high:.4f}]"
        figures.append(f"{task:<22}{name:<28}{value:.4f}{interval}")
    return figures


def table(results: dict[str, dict[str, Any]]) -> Table:
    """Return a table of the tasks that have an accuracy; it fits into 80 columns."""
    output = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("task", "problems", "accuracy", "95 % interval", "truncated", "unread"):
        output.add_column(name, justify="left" if name == "task" else "right", no_wrap=True)
    for task, result in results.items():
        if "accuracy" not in result:
            continue
        accuracy, *shares = (
            "" if result.get(name) is None else f"{100 * result[name]:.1f} %"
            for name in TABLE_FIGURES
        )
        bounds = " to ".join(f"{100 * bound:.1f}" for bound in result.get("ci95", ()))
        number = f"{result['num_problems']:,}" if "num_problems" in result else ""
        output.add_row(task, number, accuracy, bounds, *shares)
    return output


def _have_accuracy(results: dict[str, dict[str, Any]]) -> bool:
    return any("accuracy" in result for result in results.values())
