"""What a tracker's own store holds of a run, read without the code under test."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Points = Counter[tuple[int, str, float]]
"""Step, metric and value of each point, and how often it is there."""


def of_file(run_dir: Path) -> Points:
    """What all trackers must hold."""
    found: Points = Counter()
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        step, _ = values.pop("step"), values.pop("time")
        found.update((step, name, float(value)) for name, value in values.items())
    return found


def single(points: Points) -> Points:
    """The same with values as TensorBoard keeps them, in 32 bits."""
    short = struct.Struct("f")
    return Counter({(s, n, short.unpack(short.pack(v))[0]): k for (s, n, v), k in points.items()})


def of_tensorboard(run_dir: Path) -> Points:
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    found: Points = Counter()
    for file in (run_dir / "tensorboard").glob("events.*"):
        for raw in RawEventFileLoader(str(file)).Load():
            event = Event.FromString(raw)
            values = [v for v in event.summary.value if v.HasField("simple_value")]
            found.update((event.step, v.tag, v.simple_value) for v in values)
    return found


def wandb_records(run_dir: Path) -> Iterator[Any]:
    """The records of the one offline run: LevelDB's log format after seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = (run_dir / "wandb").glob("offline-run-*/*.wandb")
    content, at, part = file.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        part += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(part)
            part = b""


def wandb_rows(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of the history."""
    return [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in r.history.item}
        for r in wandb_records(run_dir)
        if r.HasField("history")
    ]


def points_of_rows(rows: list[dict[str, Any]]) -> Points:
    found: Points = Counter()
    for row in rows:
        names = [name for name in row if not name.startswith("_") and name != "step"]
        found.update((row["step"], name, float(row[name])) for name in names)
    return found


def of_wandb(run_dir: Path) -> Points:
    rows = wandb_rows(run_dir)
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    return points_of_rows(rows)


def of_mlflow(run_dir: Path, address: str | None = None) -> Points:
    """Names are MLflow's."""
    from mlflow import MlflowClient

    if address is None:
        address = f"sqlite:///{run_dir}/mlflow.db"
    if "?" in address or "#" in address:  # no address; a relative one is cached, whatever it means
        os.chdir(run_dir)
        address = "sqlite:///mlflow.db"
    client = MlflowClient(address, address)
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == run_dir.name
    found: Points = Counter()
    for name in run.data.metrics:
        for point in client.get_metric_history(run.info.run_id, name):
            found[(point.step, name, point.value)] += 1
    return found


def of_trackio(run_dir: Path, folder: Path | None = None) -> Points:
    found: Points = Counter()
    (file,) = (folder or run_dir / "trackio").glob("*.db")
    with sqlite3.connect(file) as database:
        for step, text in database.execute("select step, metrics from metrics"):
            values = json.loads(text)
            found.update((step, name, float(value)) for name, value in values.items())
    return found


READERS: dict[str, Callable[[Path], Points]] = {
    "tensorboard": of_tensorboard,
    "wandb": of_wandb,
    "mlflow": of_mlflow,
    "trackio": of_trackio,
}


def expected(run_dir: Path, name: str) -> Points:
    """The points of metrics.jsonl as a tracker must hold them."""
    points = of_file(run_dir)
    if name == "tensorboard":
        return single(points)
    if name == "mlflow":
        from posttrain.tracking.views.mlflow import safe_name

        return Counter({(s, safe_name(n), v): k for (s, n, v), k in points.items()})
    return points
