"""The report of runs: one self-contained HTML page that needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import sys
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml

from posttrain.common.disk import write_failure
from posttrain.common.files import finite, write_text
from posttrain.tracking.columns import Column, Points, columns_of

MAX_POINTS = 600
MAX_VERDICT_BARS = 120
MAX_SAMPLES_PER_KIND = 200
MAX_TEXT = 12_000
OF_LABELS = re.compile("eval_(confusion|precision|recall|f1)/")
"""A classification's metrics for each label or pair of labels: too many for a line or a curve."""

Json = dict[str, Any]
Metrics = dict[int, Json]
Item = TypeVar("Item")


def write_report(
    run_dirs: Sequence[Path],
    output: Path | None = None,
    sweep: Json | None = None,
    names: Sequence[str] | None = None,
) -> Path:
    """Write the report of one run, or a comparison of several, and return its path.

    `names` are those of the runs; by default, what tells their folders apart. `sweep` describes a
    series whose runs they are: axes, metric, and the values of each run.
    """
    if not run_dirs:
        raise ValueError("no run directory given: name at least one to report on")
    if output is None and len(run_dirs) > 1:
        raise ValueError("a report on several runs needs an output path: pass output=<file.html>")
    output = Path(run_dirs[0]) / "report.html" if output is None else Path(output)
    if output.is_dir():
        raise ValueError(f"{output} is a folder: name the page, such as {output / 'report.html'}")
    names = run_names(run_dirs) if names is None else names
    if sweep is not None:
        names = [run["label"] for run in sweep["runs"] if run["run"] is not None]
    runs = [read_run(Path(path), name) for path, name in zip(run_dirs, names, strict=True)]
    page = render({"runs": runs, "sweep": sweep})
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, page)
    except OSError as error:
        raise ValueError(
            f"the report {output} could not be written ({write_failure(error)}), all else is: mend "
            "that, then call posttrain report"
        ) from error
    return output


def render(payload: Json) -> str:
    """Return the page: the template with the payload in it."""
    template = files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    script = template.rpartition("<script>")[2].partition("</script>")[0]
    # Only the script with this hash may run, so that nothing in the data can.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The data goes in last: it may itself contain the other placeholder.
    return template.replace("{{script-hash}}", digest).replace("{{data}}", embed(payload))


def embed(payload: Json) -> str:
    """Return JSON that is safe in a script element: without any `<`, it cannot end the element."""
    return json.dumps(finite(payload), separators=(",", ":"), allow_nan=False).replace(
        "<", "\\u003c"
    )


def run_names(run_dirs: Sequence[Path]) -> list[str]:
    """Return the shortest path endings that tell the runs apart."""
    parts = [Path(path).resolve().parts for path in run_dirs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError("the same run directory is given twice: name each run once")


def read_run(run_dir: Path, name: str) -> Json:
    """Return everything that the page shows of one run."""
    if not (run_dir / "metrics.jsonl").is_file():
        raise ValueError(f"{run_dir} is not a run directory: it has no metrics.jsonl")
    labelled: Metrics = {}
    columns = columns_of(steps_of(run_dir / "metrics.jsonl", labelled))
    settings = flatten(read_config(run_dir / "config.yaml"))
    stages = read_json(run_dir / "evaluation.json", dict).get("stages") or []
    return {
        "name": name,
        "method": first_of(settings, "method", "trainer.method", "trainer.name", "trainer.type"),
        "model": first_of(settings, "model.name", "model.path", "model.name_or_path", "model"),
        "last_step": max((max(column.steps) for column in columns.values()), default=None),
        "facts": read_json(run_dir / "run.json", dict),
        "settings": settings,
        "series": all_series(columns),
        "verdicts": verdict_bars(columns),
        "samples": read_samples(sorted(run_dir.glob("samples*.jsonl"))),
        "data": read_json(run_dir / "data.json", list),
        "evaluation": task_results(run_dir) + stages,
        "classification": classification_of(labelled),
    }


def task_results(run_dir: Path) -> list[Json]:
    """Return the results that `posttrain eval --output` wrote into a run directory, task by task.

    A task's shares other than its accuracy become splits of it."""
    results = read_json(run_dir / "results.json", dict)
    tasks = []
    for task, result in results.items():
        if not isinstance(result, dict):
            continue
        numbers = {"num_problems": result["num_rows"]} if "num_rows" in result else {}
        numbers |= {k: result[k] for k in ("accuracy", "ci95", "num_problems") if k in result}
        shares = [name for name in result if f"{name}_ci95" in result]
        parts = {k: {"accuracy": result[k], "ci95": result[f"{k}_ci95"]} for k in shares}
        tasks.append({"name": task} | numbers | ({"splits": parts} if parts else {}))
    return tasks


def read_lines(path: Path) -> Iterator[tuple[int, Json]]:
    """Yield number and object of each line; skip a broken last line: the process was killed."""
    broken = None
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if broken is not None:
                break
            try:
                value = json.loads(line)
            except ValueError:
                broken = number
                continue
            if not isinstance(value, dict) or type(value.get("step")) is not int:
                raise ValueError(f'{path}:{number} is not an object with an integer "step"')
            yield number, value
        else:
            return
    raise ValueError(f"{path}:{broken} is not valid JSON: repair or delete that line")


def read_metrics(path: Path, wanted: Callable[[int, str], bool] | None = None) -> Metrics:
    """Return metrics by step; values that a resumed run wrote again replace earlier ones.

    With `wanted`, a step has only the metrics for which it is true of step and name."""
    metrics: defaultdict[int, Json] = defaultdict(dict)
    for _, line in read_lines(path):
        step = line.pop("step")
        if wanted is not None:
            line = {sys.intern(name): v for name, v in line.items() if wanted(step, name)}
        metrics[step].update(line)
    return dict(sorted(metrics.items()))


def steps_of(path: Path, labelled: Metrics) -> Iterator[tuple[int, Json]]:
    """Yield each line of metrics with its step, without the metrics of single labels.

    Of those the last step's are put into `labelled`: there may be thousands at each step."""
    for _, line in read_lines(path):
        step = line.pop("step")
        of_labels = {name: line.pop(name) for name in list(line) if OF_LABELS.match(name)}
        if of_labels and step >= max(labelled, default=step):
            before = labelled.pop(step, {})
            labelled.clear()
            labelled[step] = before | of_labels
        yield step, line


def read_samples(files: Sequence[Path]) -> list[Json]:
    """Return the last samples of each kind, of all ranks; long texts shortened in the middle."""
    latest: defaultdict[str, list[Json]] = defaultdict(list)
    for file in files:
        of_file: dict[str, deque[Json]] = {}
        for _, sample in read_lines(file):
            kind = str(sample.get("kind"))
            sample.pop("tokens", None)  # the board shows them
            of_file.setdefault(kind, deque(maxlen=MAX_SAMPLES_PER_KIND)).append(sample)
        for kind, samples in of_file.items():
            latest[kind] += samples
    return [
        {key: shorten(value) for key, value in sample.items()}
        for samples in latest.values()
        for sample in sorted(samples, key=lambda sample: sample["step"])[-MAX_SAMPLES_PER_KIND:]
    ]


def shorten(value: Any) -> Any:
    """Leave out the middle of a very long text, since its start and end tell the most."""
    if not isinstance(value, str) or len(value) <= MAX_TEXT:
        return value
    half = MAX_TEXT // 2
    return f"{value[:half]}\n[… {len(value) - 2 * half:,} characters left out …]\n{value[-half:]}"


def read_config(path: Path) -> Json:
    """Return the nested settings, empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        config = yaml.safe_load(path.read_bytes()) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a mapping of settings")
    return config


def read_json(path: Path, kind: type) -> Any:
    """Return a file's value, which must be of that kind; an empty one if there is no such file."""
    if not path.is_file():
        return kind()
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path} must hold a JSON {'object' if kind is dict else 'array'}")
    return value


def flatten(config: Json, prefix: str = "") -> dict[str, str]:
    """Return settings by dotted name, each as text."""
    settings: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            settings |= flatten(value, f"{prefix}{key}.")
        else:
            text = json.dumps(value, default=str, ensure_ascii=False)
            settings[f"{prefix}{key}"] = value if isinstance(value, str) else text
    return settings


def first_of(settings: dict[str, str], *names: str) -> str | None:
    """Return the first of these settings that exists, or None."""
    return next((settings[name] for name in names if name in settings), None)


def all_series(columns: dict[str, Column]) -> dict[str, Json]:
    """Return a curve for each metric, except counts of verdicts."""
    return {
        name: series(column.points(), column.gaps())
        for name, column in sorted(columns.items())
        if not name.startswith("verdicts/")
    }


def series(points: Points, gaps: list[int]) -> Json:
    """Return a curve for the page: thinned points and, if some were left out, their trend."""
    result = columns(thin(points))
    if len(points) > MAX_POINTS:
        # Smoothing the thinned points would follow their extremes; the means of buckets do not.
        parts = buckets(points, MAX_POINTS // 2)
        middles = [part[len(part) // 2][0] for part in parts]
        means = [math.fsum(value for _, value in part) / len(part) for part in parts]
        result["trend"] = columns(zip(middles, means, strict=True))
    if gaps:
        result["gaps"] = {"count": len(gaps), "first": gaps[0]}
    return result


def thin(points: Points, limit: int = MAX_POINTS) -> Points:
    """Return at most `limit` points: both ends, and the lowest and highest of each stretch."""
    if len(points) <= limit:
        return points
    kept = [points[0]]
    for part in buckets(points[1:-1], limit // 2 - 1):
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return [*kept, points[-1]]


def buckets(items: Sequence[Item], count: int) -> list[Sequence[Item]]:
    """Return the items in order, in at most `count` parts of nearly equal size, none empty."""
    size, count = len(items), min(count, len(items))
    return [items[i * size // count : (i + 1) * size // count] for i in range(count)]


def columns(points: Iterable[tuple[int, float]]) -> Json:
    """Return steps and values as two lists, values to seven digits to keep the page small."""
    pairs = list(points)
    return {
        "steps": [step for step, _ in pairs],
        "values": [v if isinstance(v, int) else float(f"{v:.7g}") for _, v in pairs],
    }


def classification_of(metrics: Metrics) -> Json | None:
    """Return the scores of each label in the last evaluation of a classification, or None.

    If a row has one label, also the shares of all rows by true and by predicted label."""
    first = "eval_f1/"
    steps = [step for step, line in metrics.items() if any(name.startswith(first) for name in line)]
    if not steps:
        return None
    line = metrics[steps[-1]]
    labels = [name.removeprefix(first) for name in line if name.startswith(first)]
    cells = [[line.get(f"eval_confusion/{a}/{b}") or 0 for b in labels] for a in labels]
    scores = ("precision", "recall", "f1")
    return {
        "step": steps[-1],
        "labels": labels,
        "scores": [[line.get(f"eval_{score}/{label}") for score in scores] for label in labels],
        "cells": cells if any(map(any, cells)) else None,
    }


def verdict_bars(columns: dict[str, Column]) -> Json | None:
    """Return the mean count of each verdict over stretches of steps, or None without verdicts."""
    counts = {name: column for name, column in columns.items() if name.startswith("verdicts/")}
    if not counts:
        return None
    steps = sorted(set().union(*(column.steps for column in counts.values())))
    parts = buckets(steps, MAX_VERDICT_BARS)
    starts = [part[0] for part in parts]
    means = {}
    for name, column in sorted(counts.items()):
        totals = [0.0] * len(parts)
        for step, value in column.points():
            totals[bisect_right(starts, step) - 1] += value
        means[name.removeprefix("verdicts/")] = [
            total / len(part) for total, part in zip(totals, parts)
        ]
    return {"steps": [[part[0], part[-1]] for part in parts], "values": means}
