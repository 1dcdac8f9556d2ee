"""Runs that are killed and resumed show every point once on a server, too.

MLflow's and trackio's servers are their own; W&B's is a stand-in.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import tracker_stores
import wandb_server
from test_trackers import complete, kill_when, lines_of, needs, toy
from tracker_stores import Points

from posttrain.tracking.views.mlflow import safe_name

pytestmark = pytest.mark.slow

TIMES = ("time/train", "tokens_per_second", "time_train", "memory/resident", "memory_resident")
Server = tuple[dict[str, str], Callable[[Path], Points]]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running(command: list[str], folder: Path, ready: str | None, **variables: str) -> Iterator[str]:
    """A server, and what it has printed by when it is ready."""
    log = folder / f"server-{time.time_ns()}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | variables, cwd=folder
        )
    try:
        until = time.monotonic() + 90
        while ready is not None and not re.search(ready, log.read_text()):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield log.read_text()
    finally:
        process.terminate()
        process.wait()


def wait_for(address: str) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.2)


@contextmanager
def wandb(folder: Path, port: int) -> Iterator[Server]:
    with running([sys.executable, wandb_server.__file__, str(port)], folder, None):
        wait_for(f"http://127.0.0.1:{port}/")

        def read(run_dir: Path) -> Points:
            text = urllib.request.urlopen(f"http://127.0.0.1:{port}/").read()
            (run,) = json.loads(text).values()
            assert run["exit"] == 0
            assert [row["_step"] for row in run["rows"]] == list(range(len(run["rows"])))
            return tracker_stores.points_of_rows(run["rows"])

        yield {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": "k" * 40}, read


@contextmanager
def mlflow(folder: Path, port: int) -> Iterator[Server]:
    if find_spec("flask") is None:
        pytest.skip("needs mlflow, of which mlflow-skinny has no server")
    store = f"sqlite:///{folder}/server.db"
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store]
    with running(command, folder, "startup complete", MLFLOW_DISABLE_TELEMETRY="true"):
        address = f"http://127.0.0.1:{port}"
        yield {"MLFLOW_TRACKING_URI": address}, lambda d: tracker_stores.of_mlflow(d, address)


@contextmanager
def trackio(folder: Path, port: int) -> Iterator[Server]:
    code = (
        "import time, trackio; print(trackio.show(open_browser=False, block_thread=False, "
        f"host='127.0.0.1', server_port={port}), flush=True); time.sleep(600)"
    )
    store = folder / "store"
    ready = "write_token=([^\\s]+)"
    with running([sys.executable, "-c", code], folder, ready, TRACKIO_DIR=str(store)) as text:
        found = re.search(ready, text)
        assert found is not None
        variables = {
            "TRACKIO_SERVER_URL": f"http://127.0.0.1:{port}",
            "TRACKIO_WRITE_TOKEN": found[1],
        }
        yield variables, lambda run_dir: tracker_stores.of_trackio(run_dir, store)


SERVERS = {"wandb": wandb, "mlflow": mlflow, "trackio": trackio}


def without_times(points: Points) -> Points:
    return Counter({(s, n, v): k for (s, n, v), k in points.items() if n not in TIMES})


def expected(run_dir: Path, name: str) -> Points:
    points = tracker_stores.of_file(run_dir)
    if name == "mlflow":
        points = Counter({(s, safe_name(n), v): k for (s, n, v), k in points.items()})
    return without_times(points)


@pytest.mark.parametrize("name", list(SERVERS))
def test_killed_and_resumed_runs_on_a_server(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(name)
    chance = random.Random(time.time_ns())
    folder = tmp_path / "run"
    folder.mkdir()
    with SERVERS[name](tmp_path, free_port()) as (variables, read):
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        for i in range(6):
            file = folder / "saved"
            saved = int(file.read_text()) if file.exists() else 0
            cut = sum(json.loads(x)["step"] <= saved for x in lines_of(folder))
            wait = chance.choice([0.05, 0.5, 1.5])
            command = toy(folder, name, steps=40, seconds=wait, mode="online")
            target = cut + chance.randint(2, 5)
            kill_when(folder, command, target, i % 2 == 0)
        command = toy(folder, name, steps=40, seconds=0.02, mode="online")
        assert "warning" not in complete(folder, command)
        points = read(folder)
        assert without_times(points) == expected(folder, name)
        assert set(points.values()) == {1}

        track = [sys.executable, "-m", "posttrain", "track", str(folder), "--to", name]
        track += ["tracking.mode=online", "tracking.project=some project"]
        assert "40 steps" in complete(folder, track)
        assert read(folder) == points
