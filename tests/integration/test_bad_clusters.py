"""What is wrong with machines, ports and addresses: one line, in time, and nothing is written."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
WITHIN = 60  # seconds: with the start of Python on a busy machine


@pytest.fixture
def port() -> Iterator[int]:
    """A port of this machine that another program listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def words_of(command: str, folder: Path) -> list[str]:
    """Return a command that would run, if ranks could be started."""
    if command == "train":
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(tiny.run_config(folder, "sft")))
        return ["train", str(recipe)]
    (folder / "rows.jsonl").write_text('{"prompt": "1 + 1?"}\n')
    if command == "eval":
        return ["eval", "model", "--tasks", "word_problems", "--output", str(folder / "results")]
    files = ["--file", str(folder / "rows.jsonl"), "--output", str(folder / "out.jsonl")]
    return ["generate", "model", *files]


def refused(folder: Path, *arguments: Any, **variables: str) -> str:
    """Return the one line with which a command ends, in time, with exit code 2."""
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "posttrain", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=WITHIN,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert time.monotonic() - begun < WITHIN
    after = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert after == before, "nothing is written"
    return done.stderr


@pytest.mark.parametrize("nnodes", ["2", "1:2"])
@pytest.mark.parametrize("command", ["train", "eval", "generate"])
def test_a_port_in_use(command: str, nnodes: str, port: int, tmp_path: Path) -> None:
    meeting = ("--nnodes", nnodes, "--max-restarts", 1, "--address", f"127.0.0.1:{port}")
    said = refused(tmp_path, "launch", *meeting, *words_of(command, tmp_path))
    assert said == f"error: --address: 127.0.0.1:{port} is in use: name a free port\n"


@pytest.mark.parametrize("machine", [0, 1])
@pytest.mark.parametrize(
    ("nnodes", "says"),
    [("2", "the 2 nodes did not meet at"), ("2:3", "fewer than 2 machines met at")],
)
def test_machines_that_do_not_come(nnodes: str, says: str, machine: int, tmp_path: Path) -> None:
    if machine == 1 and nnodes == "2:3":
        says = "machine 0, at which all meet ("
    where = f"127.0.0.1:{free_port()}"
    meeting = ("--nnodes", nnodes, "--max-restarts", 1, "--address", where, "--timeout", 3)
    words = words_of("generate", tmp_path)
    said = refused(tmp_path, "launch", *meeting, "--node-rank", machine, *words)
    assert said.startswith(f"error: {says}")
    assert where in said


@pytest.mark.parametrize("command", ["train", "eval", "generate"])
def test_ranks_of_torchrun_that_do_not_come(command: str, tmp_path: Path) -> None:
    limit = ["distributed.timeout=3"] if command == "train" else ["--rank-timeout", "3"]
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    variables["MASTER_PORT"] = str(free_port())
    said = refused(tmp_path, *words_of(command, tmp_path), *limit, **variables)
    assert said.startswith("error: rank 0 of 2 did not meet the others at 127.0.0.1:")
    assert "within 3 s" in said


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:1", "no cluster answers at 127.0.0.1:1: "),
        ("nowhere.invalid:6379", "no cluster answers at nowhere.invalid:6379: "),
        ("auto", "no cluster runs on this machine: name HOST:PORT"),
        ("here", "expected HOST:PORT or auto, got here"),
    ],
)
def test_a_ray_cluster_out_of_reach(address: str, says: str, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    words = words_of("eval", tmp_path)
    said = refused(tmp_path, "launch", "--ray", address, "--num-workers", 2, *words)
    assert said.startswith(f"error: --ray: {says}")


def test_what_launch_does_not_start(tmp_path: Path) -> None:
    said = refused(tmp_path, "launch", "--nproc", 2, "score", "math_correctness", "rows.jsonl")
    assert said.startswith("error: posttrain score runs in one process: ")
    said = refused(tmp_path, "launch", "--nproc", 2, "generate", "model", "a prompt")
    assert said == (
        "error: --file: prompts are sampled in one process: give several ranks a file\n"
    )
