"""What came out of a series: a table, results.json, and one report over all its runs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE
from rich.table import Table

from posttrain.common.errors import SettingError
from posttrain.common.files import finite, write_text
from posttrain.model.folder import checkpoints_in, read_info
from posttrain.runs.series.members import Member
from posttrain.runs.series.state import Record, State, read_state
from posttrain.tracking.report import OF_LABELS, read_metrics, write_report

Mode = Literal["min", "max"]
MOST_CURVES = 24
"""Runs whose curves are in the report; a longer series shows those of the best ones."""
FIRST = ("eval_loss", "eval_accuracy", "eval_reward", "eval_f1")
"""Metrics that a narrow table shows before others."""
TRIAL = "trial-"
"""What the label of a search's run begins with."""
LOWER = re.compile(r"(^|_|/)(loss|perplexity|kl|nll|brier|ece|error|error_rate|wer|std)($|_|/)")


@dataclass(frozen=True)
class Row:
    """A run in the results."""

    label: str
    state: State
    run: str | None
    """The run directory, in the series' folder; None if there is none."""
    params: dict[str, Any]
    overrides: list[str]
    """Overrides of the recipe that repeat this run."""
    steps: int | None
    loss: float | None
    """The training loss of the last step."""
    metrics: dict[str, float]
    """The last evaluation, or that of the best checkpoint with trainer.early_stopping."""
    value: float | None
    """The metric by which runs are compared."""
    seconds: float
    memory: int | None
    error: str | None


def mode_of(metric: str) -> Mode:
    """Return whether a lower or a higher value of a metric is better, by its name."""
    return "min" if LOWER.search(metric) else "max"


def evaluation_of(run_dir: Path) -> tuple[int | None, float | None, dict[str, float]]:
    """Return a run's last step, its training loss, and the evaluation of its model."""
    file = run_dir / "metrics.jsonl"
    steps = read_metrics(file, lambda step, name: is_shown(name)) if file.is_file() else {}
    losses = [line.pop("loss") for line in steps.values() if "loss" in line]
    evaluated = {step: line for step, line in steps.items() if line}
    checkpoints = checkpoints_in(run_dir)
    best = read_info(checkpoints[-1])["trainer"].get("best_step") if checkpoints else None
    step = best if best in evaluated else max(evaluated, default=None)
    last = {} if step is None else evaluated[step]
    return max(steps, default=None), losses[-1] if losses else None, last


def is_shown(name: str) -> bool:
    """Whether a metric is the training loss or one of an evaluation, except of single labels."""
    return name == "loss" or (name.startswith("eval_") and OF_LABELS.match(name) is None)


def metric_value(metric: str, metrics: dict[str, float], label: str) -> float:
    """Return the value of the metric; raise SettingError, naming those there are, without it."""
    if metric not in metrics:
        written = f"it has {', '.join(metrics)}" if metrics else "it wrote no evaluation"
        raise SettingError("metric", f"{label} wrote no metric {metric}; {written}")
    return metrics[metric]


def check_metric(metric: str | None, members: Sequence[Member]) -> None:
    """Raise SettingError for a metric that no run can write."""
    if metric is None:
        return
    evaluated = any(member.config.eval is not None for member in members)
    if not evaluated or not metric.strip():
        problem = "runs are compared by a metric of their evaluation"
        more = "" if evaluated else ": add an eval section and trainer.eval_steps"
        raise SettingError("metric", f"{problem}, got {metric!r}{more}")


def rows_of(folder: Path, members: Sequence[Member], metric: str | None) -> list[Row]:
    """Return a row for each member, in their order."""
    records = read_state(folder)[1]
    return [_row(folder, member, records.get(member.label), metric) for member in members]


def _row(folder: Path, member: Member, record: Record | None, metric: str | None) -> Row:
    if record is None:
        nothing: Any = (None, None, {}, None, 0.0, None, None)
        return Row(member.label, "waiting", None, member.params, member.overrides, *nothing)
    run_dir = folder / record.run
    steps, loss, metrics = evaluation_of(run_dir)
    value = metrics.get(metric) if metric is not None and record.state == "finished" else None
    state = "interrupted" if record.state == "running" else record.state
    return Row(
        member.label,
        state,
        record.run if run_dir.is_dir() else None,
        member.params,
        member.overrides,
        steps,
        loss,
        metrics,
        value,
        record.seconds,
        record.memory,
        record.error,
    )


def best_of(rows: Sequence[Row], mode: Mode) -> Row | None:
    """Return the finished run with the best value; None if no run has one."""
    valued = [row for row in rows if row.value is not None and math.isfinite(row.value)]
    sign = 1 if mode == "min" else -1
    return min(valued, key=lambda row: sign * (row.value or 0.0), default=None)


def table(rows: Sequence[Row], metric: str | None) -> Table:
    """Return the runs as a table for the console: by label, or by the values of a grid."""
    keys = list(dict.fromkeys(key for row in rows for key in row.params))
    written = list(dict.fromkeys(name for row in rows for name in row.metrics))
    if "eval_loss" in written:
        written = [name for name in written if name != "eval_perplexity"]
    first = [name for name in (metric, *FIRST) if name in written]
    shown = list(dict.fromkeys([*first, *written]))[: 1 if keys else 3]
    labels = ["run"] if not keys or rows[0].label.startswith(TRIAL) else []
    output = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in (*labels, *short_names(keys)):
        output.add_column(name, overflow="fold", min_width=min(len(name), 16))
    output.add_column("state", no_wrap=True)
    for name in ("steps", "loss", *shown, "time", *(() if keys else ("memory",))):
        output.add_column(name, justify="right", min_width=len(name))
    for row in rows:
        memory = "" if row.memory is None else f"{row.memory / 2**30:.1f} GiB"
        output.add_row(
            *([row.label] if labels else []),
            *(_text(row.params.get(key)) for key in keys),
            row.state,
            "" if row.steps is None else f"{row.steps:,}",
            _number(row.loss),
            *(_number(row.metrics.get(name)) for name in shown),
            f"{row.seconds:.0f} s",
            *(() if keys else (memory,)),
        )
    return output


def short_names(keys: Sequence[str]) -> list[str]:
    """Return the last part of each key, or the whole key where two have the same last part."""
    short = [key.rpartition(".")[2] for key in keys]
    return [name if short.count(name) == 1 else key for name, key in zip(short, keys)]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def write_results(
    folder: Path, rows: Sequence[Row], metric: str | None, mode: Mode | None, best: Row | None
) -> Path:
    """Write results.json, and return its path."""
    content = {
        "metric": metric,
        "mode": mode,
        "best": None if best is None else best.label,
        "runs": [asdict(row) for row in rows],
    }
    write_text(folder / "results.json", json.dumps(finite(content), indent=1) + "\n")
    return folder / "results.json"


def write_series_report(
    folder: Path, rows: Sequence[Row], metric: str | None, mode: Mode | None, logs: Sequence[str]
) -> Path | None:
    """Write the report over the runs and return its path; None if no run wrote metrics.

    `logs` are the keys whose axes are logarithmic.
    """
    sign = -1 if mode == "max" else 1
    drawn = [r for r in rows if r.run and (folder / r.run / "metrics.jsonl").is_file()]
    if not drawn:
        return None
    if len(drawn) > MOST_CURVES:
        ranked = sorted(
            drawn, key=lambda r: math.inf if r.value is None else sign * r.value
        )[:MOST_CURVES]  # fmt: skip
        drawn = [row for row in drawn if row in ranked]
    labels = [row.label for row in drawn]
    sweep = {
        "axes": [
            {"name": key, "log": key in logs}
            for key in dict.fromkeys(key for row in rows for key in row.params)
        ],
        "metric": metric,
        "mode": mode,
        "runs": [
            {
                "label": row.label,
                "state": row.state,
                "params": row.params,
                "value": row.value,
                "steps": row.steps,
                "error": row.error,
                "run": labels.index(row.label) if row.label in labels else None,
            }
            for row in rows
        ],
    }
    run_dirs = [folder / str(row.run) for row in drawn]
    return write_report(run_dirs, folder / "report.html", sweep)
