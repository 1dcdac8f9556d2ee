"""What `posttrain eval` prints of its results."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from posttrain.tracking import CONSOLE

FIGURES = ("strict_accuracy", "pass@", "maj@", "best@")
OF_THE_TABLE = ("accuracy", "truncated", "parse_failures", "unscored", "mean_score", "temperature",
                "top_p")  # fmt: skip


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print all of it."""
    if any("accuracy" in result for result in results.values()):
        CONSOLE.print(table(results))
    for task, result in results.items():
        for line in lines_of(task, result):
            CONSOLE.print(line, markup=False)
        if verdicts := result.get("verdicts"):
            counts = ", ".join(f"{name} {number:,}" for name, number in verdicts.items())
            CONSOLE.print(f"{task}: {counts}", markup=False)
        if dropped := result.get("dropped_prompts", result.get("dropped_rows")):
            CONSOLE.print(
                f"note: {task}: {dropped} problems left out: no room for their prompt", markup=False
            )


def lines_of(task: str, result: dict[str, Any]) -> list[str]:
    """The figures of a task that the table has no column for: those of text metrics and of
    likelihoods, with their intervals."""
    lines = []
    for name, value in result.items():
        if not isinstance(value, float) or name in OF_THE_TABLE or name.startswith(FIGURES):
            continue
        low, high = result.get(f"{name}_ci95", (None, None))
        interval = "" if low is None else f"  [{low:.4f}, {high:.4f}]"
        lines.append(f"{task:<22}{name:<28}{value:.4f}{interval}")
    return lines


def table(results: dict[str, dict[str, Any]]) -> Table:
    """What the console shows; a column for each figure that one of the tasks has."""
    results = {task: result for task, result in results.items() if "accuracy" in result}
    figures = [
        name
        for name in dict.fromkeys(key for result in results.values() for key in result)
        if name.startswith(FIGURES) and not name.endswith("_ci95")
    ]
    shown = Table()
    shares = ("truncated", "parse_failures", "unscored")
    names = ("problems", "accuracy", "95 % interval", *figures, *shares)
    for name in ("task", *names):
        label = name.replace("_", " ")
        shown.add_column(label, justify="left" if name == "task" else "right", no_wrap=True)
    for task, result in results.items():
        cells = [
            "" if result.get(name) is None else f"{100 * result[name]:.1f} %"
            for name in ("accuracy", *figures, *shares)
        ]
        bounds = " to ".join(f"{100 * bound:.1f}" for bound in result.get("ci95", ()))
        number = f"{result['num_problems']:,}" if "num_problems" in result else ""
        shown.add_row(task, number, cells[0], bounds, *cells[1:])
    return shown
