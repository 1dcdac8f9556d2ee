"""A run on two machines of which one is lost for good, and one on which it comes back."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
STEPS = 500


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def recipe(folder: Path, steps: int = STEPS) -> Path:
    # slow steps, so that a machine comes before the last, and small ones, so that rounding stays so
    changes = {"batch_size": 32, "micro_batch_tokens": 4096, "learning_rate": 1e-4}
    tree = tiny.run_config(folder, "sft", max_steps=steps, save_steps=20, **changes)
    tree["distributed"] = {"timeout": 90}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


@contextmanager
def machine(folder: Path, name: str, *options: Any) -> Iterator[subprocess.Popen[str]]:
    """Yield one of the machines: the launcher with its ranks, in a session of their own."""
    command = [sys.executable, "-m", "posttrain", "launch", *map(str, options)]
    with (folder / f"{name}.out").open("w") as output:
        process = subprocess.Popen(
            [*command, str(folder / "recipe.yaml")],
            stdout=output,
            stderr=output,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        try:
            yield process
        finally:
            lose(process)


def lose(process: subprocess.Popen[str]) -> None:
    """Kill a machine: the launcher and its ranks at once."""
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    for pid in [process.pid, *map(int, children.stdout.split())]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def lines(folder: Path) -> list[dict[str, Any]]:
    files = list(folder.glob("sft_*/metrics.jsonl"))
    text = files[0].read_text() if files else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def wait_for(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while not (found := lines(folder)) or found[-1]["step"] < step:
        shown = [file.read_text()[-1500:] for file in folder.glob("*.out")]
        assert process.poll() is None, shown
        assert time.monotonic() < deadline, shown
        time.sleep(0.05)


def said(folder: Path, name: str) -> str:
    return (folder / f"{name}.out").read_text()


def test_a_machine_that_is_lost_and_one_that_comes(tmp_path: Path) -> None:
    for name in ("whole", "elastic"):
        (tmp_path / name).mkdir()
        recipe(tmp_path / name)
    whole, folder = tmp_path / "whole", tmp_path / "elastic"
    with machine(whole, "whole", "--nproc", 2) as process:
        assert process.wait(240) == 0, said(whole, "whole")
    meet = ("--nproc", 1, "--nnodes", "1:2", "--address", f"127.0.0.1:{free_port()}")
    meet = (*meet, "--max-restarts", 3)
    with machine(folder, "0", *meet, "--node-rank", 0) as first:
        with machine(folder, "1", *meet, "--node-rank", 1) as second:
            wait_for(folder, 70, first)
            lose(second)
        wait_for(folder, 100, first)  # with half of the ranks
        with machine(folder, "1-again", *meet, "--node-rank", 1) as again:
            assert first.wait(300) == 0, said(folder, "0")
            assert again.wait(60) == 0, said(folder, "1-again")
    shown = said(folder, "0") + said(folder, "1") + said(folder, "1-again")
    assert "1 of 2 machines go on" in said(folder, "0")
    assert "2 of 2 machines go on" in said(folder, "0")
    assert "restart 1 of 3" in said(folder, "0")
    assert shown.count("resumed from") == 2, shown
    assert len(list(folder.glob("sft_*"))) == 1, "they go on with the run"
    expected, found = lines(whole), lines(folder)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for key in ("loss", "grad_norm"):
        values = [[line[key] for line in of] for of in (found, expected)]
        assert values[0] == pytest.approx(values[1], rel=1e-3), key


def test_a_machine_that_leaves(tmp_path: Path) -> None:
    """After SIGTERM, as before a spot machine is taken away, the run is saved and goes on."""
    recipe(tmp_path, steps=120)
    meet = ("--nproc", 1, "--nnodes", "1:2", "--address", f"127.0.0.1:{free_port()}")
    meet = (*meet, "--max-restarts", 1)
    with (
        machine(tmp_path, "0", *meet, "--node-rank", 0) as first,
        machine(tmp_path, "1", *meet, "--node-rank", 1) as second,
    ):
        wait_for(tmp_path, 30, first)
        second.send_signal(signal.SIGTERM)
        assert second.wait(120) == 128 + signal.SIGTERM
        assert first.wait(240) == 0, said(tmp_path, "0")
    shown = said(tmp_path, "0") + said(tmp_path, "1")
    assert "the run was stopped and saved, since machines leave or come; restart 1 of 1" in shown
    assert "1 of 2 machines go on" in said(tmp_path, "0")
    saved = [int(step) for step in re.findall(r"stopped after step (\d+) of 120", shown)]
    assert f"checkpoint-{saved[0]}: {120 - saved[0]} steps left" in shown, "no step is repeated"
    assert [line["step"] for line in lines(tmp_path)][-1] == 120
