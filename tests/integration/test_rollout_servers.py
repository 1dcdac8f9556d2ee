"""All weights delivered to several `posttrain serve`, in step with the training and beside it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import test_server_engine
import tiny
from serving import Live, served
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from posttrain.model.folder import checkpoints_in
from posttrain.rollout.engines import pool
from posttrain.rollout.sampler import EngineError
from posttrain.runs.config import parse_config
from posttrain.runs.train import train

steps = test_server_engine.steps


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tree = tiny.run_config(folder, "sft", max_steps=2)
    return checkpoints_in(train(parse_config(tree, "test")))[-1]


def grpo(folder: Path, model: Path, **trainer: Any) -> dict[str, Any]:
    """A run that trains all weights."""
    tree = tiny.run_config(folder, "grpo", **({"max_steps": 4, "learning_rate": 0.003} | trainer))
    tree["model"] = {"name": str(model), "adapter": "none"}
    return tree


def over(tree: dict[str, Any], *servers: Live, **keys: Any) -> dict[str, Any]:
    rollout = tree["rollout"] | {"engine": "server", "servers": [s.url for s in servers]} | keys
    return tree | {"rollout": rollout}


def run(tree: dict[str, Any]) -> Path:
    return train(parse_config(tree, "test"))


@contextmanager
def two(model: Path, folder: Path) -> Iterator[tuple[Live, Live]]:
    folder.mkdir(exist_ok=True)
    keys = {"max_num_seqs": 16, "allow_weight_updates": str(folder)}
    with served(model, **keys) as one, served(model, **keys) as other:
        yield one, other


def completions(run_dir: Path) -> list[str]:
    return [
        json.loads(x)["completion"] for x in (run_dir / "samples.jsonl").read_text().splitlines()
    ]


def test_all_weights_in_step_with_training_equal_a_run_in_process(trained, tmp_path):
    here = run(grpo(tmp_path / "here", trained))
    with two(trained, tmp_path / "there") as servers:
        there = run(over(grpo(tmp_path / "there", trained), *servers))
        versions = {server.service.worker.version[-3:] for server in servers}
        assert versions == {"-v3"}
    assert completions(here) == completions(there)
    for a, b in zip(steps(here), steps(there), strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-5)
    assert not (there / "adapters").exists()


def test_a_run_that_is_served_and_trained_further_is_one_model(trained, tmp_path):
    """Both name the run's folder, and mean its newest checkpoint."""
    tree = grpo(tmp_path, trained.parent, max_steps=1)
    with two(trained.parent, tmp_path) as servers:
        run(over(tree, *servers))


def test_completions_are_at_most_as_old_as_the_bound(trained, tmp_path):
    with two(trained, tmp_path) as servers:
        tree = grpo(tmp_path, trained, max_steps=8, sampler_correction="token")
        run_dir = run(over(tree, *servers, max_staleness=2))
    rows = [row for row in steps(run_dir) if "loss" in row]
    ages = [row["sampling/max_staleness"] for row in rows]
    assert len(ages) == 8
    assert ages[0] == 0
    assert max(ages) in (1, 2)
    assert all(0 <= row["sampling/staleness"] <= row["sampling/max_staleness"] for row in rows)
    assert rows[-1]["sampling/queue"] == 0, "steps after the last one were sampled"


@pytest.mark.slow  # tests/unit/rollout/test_ahead.py holds what a checkpoint keeps
def test_a_resumed_run_keeps_to_the_bound(trained, tmp_path):
    with two(trained, tmp_path) as servers:
        tree = over(
            grpo(tmp_path, trained, max_steps=6, save_steps=3, sampler_correction="token"),
            *servers,
            max_staleness=2,
        )
        whole = run(tree)
        (third,) = [c for c in checkpoints_in(whole) if c.name == "checkpoint-3"]
        tree["trainer"]["resume_from_checkpoint"] = str(third)
        again = run(tree)
    assert again == whole
    rows = [row for row in steps(whole) if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert max(row["sampling/max_staleness"] for row in rows) <= 2


@pytest.mark.slow  # two ranks; the mechanism on one is tested above
@pytest.mark.parametrize("bound", [0, 2])
def test_two_ranks_agree_on_the_versions_of_two_servers(bound, trained, tmp_path):
    """Rank 0 delivers; in step with training, two ranks have the rollouts of one."""
    from test_distributed import launch

    with two(trained, tmp_path) as servers:
        found = []
        for ranks in (1, 2):
            tree = grpo(tmp_path, trained, max_steps=5, batch_size=3, sampler_correction="token")
            found.append(launch(over(tree, *servers, max_staleness=bound), tmp_path, ranks))
            versions = {server.service.worker.version[-3:] for server in servers}
            assert versions == {"-v4"}
    one, other = ([row for row in steps(run_dir) if "loss" in row] for run_dir in found)
    assert len(one) == len(other) == 5
    if bound:
        assert max(row["sampling/max_staleness"] for row in other) in (1, 2)
    else:
        for a, b in zip(one, other, strict=True):
            for name in ("loss", "grad_norm", "num_tokens", "reward"):
                assert b[name] == pytest.approx(a[name], rel=2e-4, abs=1e-7), name


def test_what_is_wrong_is_said_before_training_begins(trained, tmp_path):
    folder, elsewhere = tmp_path / "shared", tmp_path / "elsewhere"
    elsewhere.mkdir()
    deep = tmp_path / trained.name  # another model of this name
    config = AutoConfig.from_pretrained(trained)
    config.num_hidden_layers, config.layer_types = 3, ["full_attention"] * 3
    AutoModelForCausalLM.from_config(config).save_pretrained(deep)
    AutoTokenizer.from_pretrained(trained).save_pretrained(deep)

    def refused(server: Live, expected: str, **keys: Any) -> None:
        with pytest.raises(EngineError, match=expected) as caught:
            run(over(grpo(folder, trained), server, retries=0, **keys))
        assert "\n" not in str(caught.value)
        assert server.url in str(caught.value)
        assert not list(folder.glob("grpo_*/checkpoint-*")), "it has trained"

    with served(trained) as closed:
        refused(
            closed, "takes no new weights, and this run trains all of them: start it with: VLLM"
        )
    with served(trained, allow_weight_updates=str(elsewhere)) as apart:
        refused(apart, f"not within {elsewhere}.*must lie on a filesystem that the server sees")
    with served(deep, allow_weight_updates=str(tmp_path)) as other:
        url = other.url
        refused(
            other, r"refused POST /update_weights \(400\): .* lacks \d+ tensors of the served model"
        )
    with pytest.raises(EngineError, match=rf"server {url} cannot be reached"):
        run(over(grpo(folder, trained), Live(url, other.service), retries=0))


# ---- servers that die ----


def rows(path: Path, part: slice) -> str:
    """Numbers to repeat, a part of them all in an arbitrary order."""
    numbers = sorted(range(1000), key=lambda n: n * 7919 % 1009)
    shown = [f"{n:03d}" for n in numbers[part]]
    made = [{"prompt": f"say {n}", "completion": n, "answer": n} for n in shown]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in made))
    return str(path)


@pytest.fixture(scope="module")
def repeating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that repeats a number rightly about every third time."""
    folder = tmp_path_factory.mktemp("repeating")
    tree = tiny.run_config(folder, "sft", max_steps=140, batch_size=16, learning_rate=3e-3)
    tree["model"]["scratch"] |= {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 300}
    tree["data"] = {"path": rows(folder / "sft.jsonl", slice(600))}
    return checkpoints_in(run(tree))[-1]


def repeat(folder: Path, model: Path, seed: int) -> dict[str, Any]:
    """GRPO from there, on other numbers, with a share of the reward for each right digit."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "digits.py").write_text(
        "from posttrain.rewards.score import Score\n"
        "def one(said, answer):\n"
        "    right = sum(a == b for a, b in zip(said, answer))\n"
        "    return Score(right / max(len(said), 3), ('wrong', 'correct')[said == answer])\n"
        "def reward(prompts, completions, answer, **columns):\n"
        "    return [one(c.strip(), a) for c, a in zip(completions, answer)]\n"
    )
    return {
        "model": {"name": str(model), "adapter": "none"},
        "data": {"path": rows(folder / "rl.jsonl", slice(600, 800))},
        "trainer": {
            "type": "grpo",
            "output_dir": str(folder),
            "run_name": "grpo",
            "max_steps": 60,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "scheduler": "linear",
            "logger": [],
            "seed": seed,
            "sampler_correction": "token",
        },
        "rollout": {"group_size": 8, "max_new_tokens": 8},
        "reward": {"type": "custom", "path": str(folder / "digits.py")},
    }


def accuracy(run_dir: Path, part: slice) -> float:
    """The share of right completions in some of a run's steps, of 64 completions each."""
    logged = [row for row in steps(run_dir) if "loss" in row][part]
    return sum(row.get("verdicts/correct", 0.0) for row in logged) / (64 * len(logged))


class Process:
    """`posttrain serve` in a process of its own, which may be killed and started again."""

    def __init__(self, model: Path, folder: Path, port: int = 0) -> None:
        command = [sys.executable, "-m", "posttrain", "serve", str(model), "--port", str(port)]
        command += ["--allow-weight-updates", str(folder), "--cache-gib", "0.1"]
        command += ["--device", "cpu", "--dtype", "float32", "--max-num-seqs", "64"]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+(?=/v1)", line)
        assert found, line
        self.url = found[0]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def step_of(folder: Path) -> int:
    """The last step that a run below the folder has finished."""
    found = list(folder.glob("grpo_*/metrics.jsonl"))
    return len(found[0].read_text().splitlines()) if found else 0


def killed_and_replaced(folder: Path, model: Path, seed: int) -> tuple[Path, str]:
    """A run with two servers, and the address of the one that was killed and replaced."""
    tree = repeat(folder, model, seed)
    servers = [Process(model, folder), Process(model, folder)]
    ended = threading.Event()

    def kill_and_replace() -> None:
        while step_of(folder) < 15 and not ended.is_set():
            time.sleep(0.02)
        servers[0].kill()
        servers.append(Process(model, folder, servers[0].port))

    killer = threading.Thread(target=kill_and_replace)
    killer.start()
    try:
        return run(over(tree, *servers, max_staleness=2)), servers[0].url
    finally:
        ended.set()
        killer.join()
        for server in servers:
            server.kill()


@pytest.mark.slow  # two servers, and trainings of a minute
def test_a_run_with_a_killed_and_replaced_server_ends_as_one_in_process(
    repeating, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(pool, "PROBE_SECONDS", 0.5)
    here_dir = run(repeat(tmp_path / "here", repeating, 0))
    run_dir, url = killed_and_replaced(tmp_path / "there", repeating, 0)
    said = capfd.readouterr().out
    assert len(re.findall(rf"server {url} is left out: it (cannot be reached|dropped)", said)) == 1
    joined = re.findall(rf"server {url} has joined, with the weights of version (\d+)", said)
    assert len(joined) == 1
    assert int(joined[0]) > 15
    logged = [row for row in steps(run_dir) if "loss" in row]
    assert [row["step"] for row in logged] == list(range(1, 61))
    assert max(row["sampling/max_staleness"] for row in logged) <= 2
    last, first = slice(-10, None), slice(5)
    here, there = accuracy(here_dir, last), accuracy(run_dir, last)
    # four standard errors of a difference of two shares of 640 in groups, which count half
    assert abs(here - there) < 4 * (here * (1 - here) * 2 / 320) ** 0.5
    assert there > accuracy(run_dir, first) + 0.2
