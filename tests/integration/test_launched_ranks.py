"""Ranks that are started by `posttrain launch`, killed and stopped."""

from __future__ import annotations

import json
import os
import re
import signal
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

pytestmark = pytest.mark.distributed
STEPS = 300


def recipe(folder: Path, timeout: float = 60, **trainer: Any) -> Path:
    tree = tiny.run_config(folder, "sft", **{"max_steps": STEPS, "save_steps": 20, **trainer})
    tree["distributed"] = {"timeout": timeout}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "posttrain", "launch", "--nproc", "2", *map(str, arguments)]


@contextmanager
def launched(folder: Path, *arguments: Any) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(
            command(*arguments), stdout=output, stderr=output, text=True, env=environment
        )
        try:
            yield process
        finally:
            for rank in ranks_of(process).values():
                os.kill(rank, signal.SIGKILL)
            process.kill()
            process.wait()


def ranks_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """Return the processes of the ranks by their number."""
    found = {}
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    for pid in children.stdout.split():
        try:
            environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
        except OSError:
            continue
        for entry in environment:
            if entry.startswith("RANK="):
                found[int(entry.removeprefix("RANK="))] = int(pid)
    return found


def lines(folder: Path) -> list[dict[str, Any]]:
    files = list(folder.glob("sft_*/metrics.jsonl"))
    text = files[0].read_text() if files else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def wait_for(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(lines(folder)) < step:
        assert process.poll() is None, (folder / "output").read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_error_of_all_ranks_is_one_line(tmp_path: Path) -> None:
    file = recipe(tmp_path)
    done = subprocess.run(
        command(file, "trainer.max_stepz=3"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == f"error: {file}: unknown key trainer.max_stepz: did you mean max_steps?\n"


@pytest.mark.slow
def test_a_dry_run_is_that_of_all_ranks(tmp_path: Path) -> None:
    call = command(recipe(tmp_path), "--dry-run")
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("2 ranks: ")
    assert done.stdout.count("2 rank(s)") == 1
    assert not list(tmp_path.glob("sft_*"))


@pytest.mark.slow
def test_a_signal_reaches_all_ranks_once(tmp_path: Path) -> None:
    file = recipe(tmp_path, max_steps=10**6, save_steps=10**6)
    with launched(tmp_path, file) as process:
        wait_for(tmp_path, 2, process)
        ranks = ranks_of(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 128 + signal.SIGINT
        assert sorted(ranks) == [0, 1]
        assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values()), "none is left"
    shown = (tmp_path / "output").read_text()
    assert "Traceback" not in shown
    assert "torch" not in shown.partition("step     1/")[2]
    assert shown.count("interrupted: stopped after step") == 1
    assert len(list(tmp_path.glob("sft_*/checkpoint-*"))) == 1


@pytest.mark.slow
def test_restarts_resume_bit_for_bit(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    with launched(tmp_path / "whole", recipe(tmp_path / "whole")) as process:
        assert process.wait(240) == 0
    killed = tmp_path / "killed"
    with launched(killed, "--max-restarts", 3, recipe(killed)) as process:
        for step, rank in ((45, 1), (110, 0), (230, 1)):
            wait_for(killed, step, process)
            os.kill(ranks_of(process)[rank], signal.SIGKILL)
            time.sleep(2)
        assert process.wait(240) == 0, (killed / "output").read_text()[-2000:]
    shown = (killed / "output").read_text()
    for number, rank in ((1, 1), (2, 0), (3, 1)):
        line = f"rank {rank} on .* has failed .signal 9.*; restart {number} of 3\n"
        assert re.search(line, shown), shown
    same = ("step", "loss", "grad_norm")
    logged = [[{k: x[k] for k in same} for x in lines(tmp_path / n)] for n in ("whole", "killed")]
    assert logged[0] == logged[1]
    weights = [
        next((tmp_path / n).glob(f"sft_*/checkpoint-{STEPS}/model.safetensors")).read_bytes()
        for n in ("whole", "killed")
    ]
    assert weights[0] == weights[1]
    assert len(list(killed.glob("sft_*"))) == 1, "the restarts go on with the run"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stuck_ends_the_run_by_name(rank: int, tmp_path: Path) -> None:
    with launched(tmp_path, recipe(tmp_path, 5, max_steps=10**6)) as process:
        wait_for(tmp_path, 10, process)
        stuck = ranks_of(process)[rank]
        os.kill(stuck, signal.SIGSTOP)
        assert process.wait(90) != 0
    said = (tmp_path / "output").read_text()
    assert f"rank {rank}" in said
    assert "is silent: it finished step" in said


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_run_by_name(tmp_path: Path) -> None:
    with launched(tmp_path, recipe(tmp_path, max_steps=10**6)) as process:
        wait_for(tmp_path, 10, process)
        os.kill(ranks_of(process)[1], signal.SIGKILL)
        assert process.wait(60) == 128 + signal.SIGKILL
    assert "has failed (signal 9)" in (tmp_path / "output").read_text()
