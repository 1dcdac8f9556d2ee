"""A run that is asked to stop saves after its step, and resumes as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny
import torch
import yaml
from measured import repeatable
from safetensors.torch import load_file

from posttrain.common.interrupt import Interrupted, listening
from posttrain.common.lock import is_written, writing
from posttrain.model.folder import checkpoints_in
from posttrain.runs.config import parse_config
from posttrain.runs.listing import read
from posttrain.runs.train import train


def run_tree(folder: Path, method: str, **keys: Any) -> dict[str, Any]:
    tree = tiny.run_config(folder, method, max_steps=4, eval_steps=2, save_steps=4, **keys)
    tree.setdefault("eval", {"max_samples": 4})
    return tree


def lines(run_dir: Path) -> list[dict[str, Any]]:
    read_lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [repeatable(json.loads(line)) for line in read_lines]


def signal_after(step: int) -> Callable[[], Any]:
    """A stand-in for `listening`, by which SIGTERM comes during a step."""

    @contextmanager
    def stand_in() -> Iterator[Callable[[], int]]:
        calls = iter(range(1, 10_000))
        yield lambda: signal.SIGTERM if next(calls) == step else 0

    return stand_in


@pytest.mark.parametrize("method", [pytest.param("sft", marks=pytest.mark.slow), "grpo"])
def test_a_run_stopped_after_each_step_is_the_run(method, tmp_path, monkeypatch):
    """At steps 2 and 4 an evaluation is due, which the resumed run makes first."""
    tree = run_tree(tmp_path, method, learning_rate=1e-2)
    tree["trainer"]["early_stopping"] = {
        "metric": "eval_loss" if method == "sft" else "eval_reward",
        "mode": "min" if method == "sft" else "max",
        "patience": 9,
    }
    whole = train(parse_config(tree, "test"), tmp_path / "whole")
    parts = tmp_path / "parts"
    resume: dict[str, Any] = {}
    for step in (1, 2, 3, 4):
        # the first check after a resume is before the evaluation that is due
        after_evaluation = step > 1 and (step - 1) % 2 == 0
        monkeypatch.setattr("posttrain.runs.train.listening", signal_after(1 + after_evaluation))
        tree["trainer"] |= resume
        with pytest.raises(Interrupted, match=f"step {step} of 4, which is saved") as caught:
            train(parse_config(tree, "test"), None if resume else parts)
        assert caught.value.code == 143
        assert read(parts).state == "interrupted"
        assert checkpoints_in(parts)[-1].name == f"checkpoint-{step}"
        resume = {"resume_from_checkpoint": str(parts)}
    monkeypatch.setattr("posttrain.runs.train.listening", listening)
    tree["trainer"] |= resume
    train(parse_config(tree, "test"))
    assert lines(parts) == lines(whole)
    left, right = (load_file(checkpoints_in(r)[-1] / "model.safetensors") for r in (whole, parts))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert read(parts).state == read(whole).state == "finished"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_from_outside(number, code, tmp_path):
    tree = tiny.run_config(tmp_path, "sft", max_steps=2000, learning_rate=1e-3)
    tree["trainer"]["output_dir"] = str(tmp_path / "runs")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    output = tmp_path / "output"

    def stop(processes: list[Any]) -> None:
        run_dir = when_training(tmp_path / "runs")
        assert is_written(run_dir)
        assert read(run_dir).state == "running"
        again = ["train", str(recipe), f"trainer.resume_from_checkpoint={run_dir}"]
        with pytest.raises(AssertionError, match="is not a checkpoint, nor a run that has one"):
            ranks.command(1, tmp_path / "again", again)
        os.kill(processes[0].pid, number)

    assert ranks.exit_codes(1, output, ["train", str(recipe)], stop) == [code]
    said = (output / "0.stderr").read_text()
    (run_dir,) = (tmp_path / "runs").iterdir()
    listed = read(run_dir)
    assert f"stopped after step {listed.step} of 2000, which is saved: resume with" in said
    assert "stopping after this step" in said
    assert "or by the option --resume" in said
    assert "Traceback" not in said
    assert listed.state == "interrupted"
    assert [c.name for c in checkpoints_in(run_dir)] == [f"checkpoint-{listed.step}"]


def test_two_processes_do_not_write_to_one_run(tmp_path):
    tree = tiny.run_config(tmp_path, "sft", max_steps=2, save_steps=1)
    run_dir = train(parse_config(tree, "test"), tmp_path / "run")
    tree["trainer"]["resume_from_checkpoint"] = str(run_dir / "checkpoint-1")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    metrics = (run_dir / "metrics.jsonl").read_bytes()
    with writing(run_dir):
        with pytest.raises(AssertionError, match="is being written to by another run"):
            ranks.command(1, tmp_path / "output", ["train", str(recipe)])
        with pytest.raises(ValueError, match="is being written to by another run"):
            train(parse_config(tree, "test"))
    assert (run_dir / "metrics.jsonl").read_bytes() == metrics
    ranks.command(1, tmp_path / "output", ["train", str(recipe)])


def when_training(folder: Path) -> Path:
    """Wait until the only run in a folder has made a step, and return it."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for metrics in folder.glob("*/metrics.jsonl"):
            if metrics.stat().st_size:
                return metrics.parent
        time.sleep(0.05)
    raise AssertionError("no step was made")


def test_a_rank_that_is_stopped_stops_the_others(tmp_path):
    """torchrun passes a signal to all ranks, at moments of their own."""
    tree = tiny.run_config(tmp_path, "sft", max_steps=2000)
    tree["trainer"]["output_dir"] = str(tmp_path / "runs")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))

    def stop_rank_1(processes: list[Any]) -> None:
        when_training(tmp_path / "runs")
        os.kill(processes[1].pid, signal.SIGTERM)

    codes = ranks.exit_codes(2, tmp_path / "output", ["train", str(recipe)], stop_rank_1)
    assert codes == [143, 143]
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert checkpoints_in(run_dir)[-1].name == f"checkpoint-{read(run_dir).step}"


def test_a_second_interrupt_stops_at_once():
    program = """
import os, signal, time
from posttrain.common.interrupt import listening
with listening() as asked:
    os.kill(os.getpid(), signal.SIGINT)
    assert asked() == signal.SIGINT
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        print("at once")
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=50)
    assert done.stdout == b"at once\n", done.stderr


def test_a_step_without_end_ends_after_sigterm():
    program = """
import os, signal, time
from posttrain.common import interrupt
interrupt.STOP_WITHIN = 0.3
with interrupt.listening():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=50)
    assert done.returncode == 143
    assert b"did not end within 0 s of SIGTERM" in done.stderr


def test_resume_by_one_word(tmp_path, monkeypatch):
    tree = tiny.run_config(tmp_path, "sft", max_steps=3, save_steps=1)
    tree["trainer"]["output_dir"] = str(tmp_path / "runs")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    again = ["train", str(recipe), "--resume"]
    ranks.command(1, tmp_path / "output", again)  # nothing to resume: a new run
    (run_dir,) = (tmp_path / "runs").iterdir()
    ranks.command(1, tmp_path / "output", [*again, "trainer.logging_steps=1"])
    assert list((tmp_path / "runs").iterdir()) == [run_dir]
    with pytest.raises(AssertionError, match=r"learning_rate was .*, now 0.5: start a new run"):
        ranks.command(1, tmp_path / "output", [*again, "trainer.learning_rate=0.5"])
