"""Kill anywhere, resume, and get the bits of the run that was never killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from measured import repeatable
from repeats import choice
from safetensors.torch import load_file
from trainer_states import trainer_tensors

from posttrain.algorithms import ALGORITHMS
from posttrain.model.folder import checkpoints_in
from posttrain.runs.config import parse_config
from posttrain.runs.train import train
from posttrain.training.trainer import Trainer


def run(tree: dict) -> Path:
    return train(parse_config(tree, "test"))


def metrics(run_dir: Path) -> list[dict]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [repeatable(json.loads(line)) for line in lines]


def samples(run_dir: Path) -> str:
    return (run_dir / "samples.jsonl").read_text()


def assert_same_bits(a: Path, b: Path) -> None:
    first, second = checkpoints_in(a)[-1], checkpoints_in(b)[-1]
    assert first.name == second.name
    names = ("adapter_model.safetensors", "reft_model.safetensors", "model.safetensors")
    file = next(name for name in names if (first / name).exists())
    left, right = load_file(first / file), load_file(second / file)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[k], right[k]) for k in left)
    states = [trainer_tensors(p) for p in (first, second)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def run_killed_and_resumed(tree: dict, stop_at: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run directory, after an end before step `stop_at` + 1 and a resume."""
    step = Trainer.train_step

    def dies(self):
        if self.step == stop_at:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tree)
    monkeypatch.setattr(Trainer, "train_step", step)
    tree["trainer"]["resume_from_checkpoint"] = "latest"
    return run(tree)


STOPS = [(stop_at, method) for stop_at in (2, 3) for method in ALGORITHMS]
# where it stops does not depend on the method; the twins are dpo's and grpo's code
TWINS = ("ipo", "simpo", "cpo", "orpo", "rloo")
FAST = [(2, method) for method in ALGORITHMS if method not in TWINS] + [(3, "sft"), (3, "grpo")]


@pytest.mark.parametrize(("stop_at", "method"), choice(STOPS, FAST))
def test_train_2n_equals_train_n_and_resume(method, stop_at, tmp_path, monkeypatch):
    """stop_at 3 of 6 steps; with 5 steps an epoch that is within an epoch, then across its edge."""
    tree = tiny.run_config(tmp_path, method, save_steps=1, keep_checkpoints=9)
    tree["trainer"]["output_dir"] = str(tmp_path / "whole")
    whole = run(tree)
    tree["trainer"]["output_dir"] = str(tmp_path / "parts")

    parts = run_killed_and_resumed(tree, stop_at, monkeypatch)
    assert metrics(whole) == metrics(parts)
    assert samples(whole) == samples(parts)
    assert_same_bits(whole, parts)


@pytest.mark.parametrize("method", [pytest.param("grpo", marks=pytest.mark.slow), "ppo"])
def test_resume_with_lora_dropout_and_kl(method, tmp_path, monkeypatch):
    """Everything that has a state at once: adapter, dropout's random numbers, the reference, the
    coefficient of its penalty, and for ppo the value model's own adapter."""
    base = run(tiny.run_config(tmp_path / "base", "sft", max_steps=2))
    model = {"name": str(base), "use_lora": True, "lora": {"r": 4, "dropout": 0.1}}
    keys = {"save_steps": 2, "beta": 0.05, "num_inner_epochs": 2, "num_minibatches": 2}
    keys |= {"kl_target": 1e-4}
    trees = {}
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        trees[name] = tiny.run_config(tmp_path / name, method, **keys) | {"model": model}
    trees["parts"]["reward"] = trees["whole"]["reward"]
    whole = run(trees["whole"])

    parts = run_killed_and_resumed(trees["parts"], 3, monkeypatch)
    assert metrics(whole) == metrics(parts)
    assert_same_bits(whole, parts)
    betas = [line["beta"] for line in metrics(whole)[1:]]
    assert len(set(betas)) == len(betas), "beta did not adapt: its state is not tested"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_sigkill_at_random_moments(method, tmp_path):
    """A real process, killed twice at moments nobody chose, then left to finish."""
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    keys = {"save_steps": 2, "max_steps": 30, "keep_checkpoints": 2}
    tree = tiny.run_config(tmp_path / "whole", method, **keys)
    whole = run(tree)
    tree["trainer"]["output_dir"] = str(tmp_path / "parts")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "posttrain", "train", str(recipe)]
    chance = random.Random(time.time_ns())
    kills = 0
    while kills < 2:
        found = [p for p in (tmp_path / "parts").glob("*") if checkpoints_in(p)]
        resume = ["trainer.resume_from_checkpoint=latest"] if found else []
        process = subprocess.Popen([*command, *resume], stdout=subprocess.DEVNULL, env=os.environ)
        before = found and checkpoints_in(found[0])[-1].name
        while process.poll() is None:
            found = [p for p in (tmp_path / "parts").glob("*") if checkpoints_in(p)]
            if found and checkpoints_in(found[0])[-1].name != before:
                time.sleep(chance.random() * 0.15)
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        process.wait()
        if process.returncode == 0:
            break  # it finished before the second kill
    assert kills >= 1
    subprocess.run(
        [*command, "trainer.resume_from_checkpoint=latest"], check=True, stdout=subprocess.DEVNULL
    )
    (parts,) = (tmp_path / "parts").iterdir()
    assert metrics(whole) == metrics(parts)
    assert samples(whole) == samples(parts)
    assert_same_bits(whole, parts)
