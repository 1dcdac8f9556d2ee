"""What a folder of runs holds: the state of each run, its step, a metric and its size."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from posttrain.common.disk import size
from posttrain.common.lock import is_written

STATES = ("running", "finished", "failed", "interrupted", "killed")
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a tenth of the time
TAIL = 1 << 16  # bytes at the end of metrics.jsonl that are read: a long run has gigabytes
FEW_LINES = 20  # more are wanted: the scores of single labels make a line longer than TAIL
LONG_TAIL = 1 << 20
LONGEST_LINE = 1 << 24
LAST_STEP = 2**53  # larger numbers are damage, and no other program could read them
LARGEST = 1e300  # JSON has no infinity, but Python writes and reads one
DAMAGE = (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError)
"""What reading a file of unknown contents raises."""
METRICS = ("eval_accuracy", "eval_reward", "eval_loss", "reward", "loss")
"""The metric that is shown: the first of these that a run has, after that of early stopping."""


@dataclass(frozen=True)
class Listed:
    """One run in a folder."""

    folder: Path
    method: str
    model: str
    state: str
    """One of STATES; killed if it says running and no process writes to it."""
    step: int
    num_steps: int | None
    metric: str | None
    value: float | None
    num_bytes: int
    updated: float
    """Time of its last line of metrics, in seconds since 1970."""
    error: str | None


def runs_in(folder: Path) -> list[Listed]:
    """Return the runs in a folder and in the folders in it, newest first.

    Raise ValueError if there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name one that holds runs")
    return sorted(map(read, run_folders(folder)), key=lambda run: run.updated, reverse=True)


def run_folders(folder: Path) -> list[Path]:
    """Return the run directories in a folder, which may be one itself."""
    found = []
    for place, folders, files in os.walk(folder):
        if "metrics.jsonl" in files or {"run.json", "config.yaml"} <= set(files):
            found.append(Path(place))
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    return found


def read(folder: Path, num_bytes: int | None = None) -> Listed:
    """Return what is known of one run; what is damaged or missing is left out.

    Its size is counted unless it is given.
    """
    info, config = read_info(folder), read_settings(folder)
    trainer = _section(config, "trainer")
    lines = last_lines(folder / "metrics.jsonl")
    metric, value = _metric(lines, _section(trainer, "early_stopping").get("metric"))
    steps = [line["step"] for line in lines if is_step(line.get("step"))]
    times = [line["time"] for line in lines if is_number(line.get("time"))]
    num_steps = info.get("num_steps")
    step = max(steps, default=0)
    model = _section(config, "model")
    return Listed(
        folder,
        str(trainer.get("type", "?")),
        str(model.get("name") or ("random weights" if "scratch" in model else "?")),
        _state(folder, info),
        step,
        num_steps if is_step(num_steps) else None,
        metric,
        value,
        folder_bytes(folder) if num_bytes is None else num_bytes,
        max(times, default=folder.stat().st_mtime),
        str(info["error"]) if info.get("error") else None,
    )


def table(runs: Iterable[Listed], root: Path) -> str:
    """Return a line for each run, under a heading."""
    rows = [("run", "method", "state", "step", "metric", "size", "last metrics")]
    for run in runs:
        name = str(run.folder.relative_to(root)) if run.folder != root else run.folder.name
        steps = f"{run.step}/{run.num_steps}" if run.num_steps else str(run.step)
        value = "" if run.value is None else f"{run.metric} {run.value:.4g}"
        when = datetime.fromtimestamp(run.updated).strftime("%Y-%m-%d %H:%M")
        rows.append((name, run.method, run.state, steps, value, size(run.num_bytes), when))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _state(folder: Path, info: dict[str, Any]) -> str:
    if is_written(folder):
        return "running"
    state = info.get("state", "finished" if "finished" in info else "killed")
    return "killed" if state not in STATES or state == "running" else str(state)


def _metric(lines: list[dict[str, Any]], chosen: Any) -> tuple[str | None, float | None]:
    """Return the last value of the chosen metric, or of the first of METRICS that there is."""
    for name in (*([chosen] if isinstance(chosen, str) else []), *METRICS):
        for line in reversed(lines):
            if is_number(value := line.get(name)):
                return name, float(value)
    return None, None


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a number that JSON has."""
    return type(value) in (int, float) and abs(value) < LARGEST


def is_step(value: Any) -> bool:
    """Return whether a value can be the number of a step."""
    return type(value) is int and 0 <= value < LAST_STEP


def last_lines(file: Path) -> list[dict[str, Any]]:
    """Return the lines in the last TAIL bytes of a file of metrics; damaged ones are left out.

    There are more bytes to it if these are a few long lines.
    """
    found: list[dict[str, Any]] = []
    try:
        with file.open("rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            for reach in (TAIL, 4 * TAIL, LONG_TAIL, LONGEST_LINE):
                start = handle.seek(max(0, size - reach))
                data = handle.read()
                count = data.count(b"\n")
                if start == 0 or count > FEW_LINES or (count > 1 and reach >= LONG_TAIL):
                    break
    except OSError:
        return found
    for part in data.split(b"\n")[1 if start else 0 :]:
        try:
            line = json.loads(part)
        except (ValueError, RecursionError):
            continue  # cut off: the run is writing it, or was killed
        if isinstance(line, dict):
            found.append(line)
    return found


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue  # removed while a run saves its next checkpoint
    return total


def read_info(folder: Path) -> dict[str, Any]:
    """Return what run.json says, nothing if it is damaged or missing."""
    try:
        content = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except DAMAGE:
        return {}
    return content if isinstance(content, dict) else {}


def read_settings(folder: Path) -> dict[str, Any]:
    """Return a run's config, nothing if it is damaged or missing."""
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        content = yaml.load(text, LOADER)
    except (*DAMAGE, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _section(tree: dict[str, Any], name: str) -> dict[str, Any]:
    section = tree.get(name)
    return section if isinstance(section, dict) else {}
