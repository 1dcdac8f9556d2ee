"""A run on a Ray cluster of two nodes, one of which is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

pytest.importorskip("ray", reason="the extra ray is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def recipe(folder: Path, **trainer: Any) -> Path:
    """A GRPO run, whose rollouts are split over the ranks."""
    tree = tiny.run_config(folder, "grpo", **{"max_steps": 120, "save_steps": 20, **trainer})
    tree["distributed"] = {"timeout": 30}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def start(cluster: Any, folder: Path, *arguments: Any, workers: int = 2) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "posttrain", "launch", "--ray", cluster.address]
    command += ["--num-workers", str(workers), "--timeout", "60", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_TOKEN": "hf_canarycanarycanary"},
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    files = list(folder.glob("grpo_*/metrics.jsonl"))
    text = files[0].read_text() if files else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def test_a_node_that_is_killed(cluster: Any, tmp_path: Path) -> None:
    shown = {}
    for name in ("whole", "killed"):
        folder = tmp_path / name
        process = start(cluster, folder, recipe(folder))
        if name == "killed":
            deadline = time.monotonic() + 120
            while len(lines(folder)) < 50 and time.monotonic() < deadline:
                time.sleep(0.02)
            node = next(n for n in cluster.list_all_nodes() if n is not cluster.head_node)
            begun = time.monotonic()
            cluster.remove_node(node, allow_graceful=False)
            _, error = process.communicate(timeout=120)
            assert process.returncode not in (0, None)
            assert time.monotonic() - begun < 100
            assert "has failed" in error
            assert "rank " in error
            cluster.add_node(num_cpus=1)
            process = start(cluster, folder, recipe(folder), "--resume")
        out, error = process.communicate(timeout=240)
        assert process.returncode == 0, error[-2000:]
        assert "2 ranks: " in out
        same = ("step", "loss", "grad_norm", "reward")
        shown[name] = [{k: line[k] for k in same} for line in lines(folder)]
    assert len(shown["whole"]) == 120
    assert shown["killed"] == shown["whole"]


def test_what_cannot_be_placed_or_started(cluster: Any, tmp_path: Path) -> None:
    file = recipe(tmp_path)
    before = sorted(tmp_path.iterdir())
    for arguments, workers, words in (
        ((file, "trainer.lr=1"), 2, "unknown key trainer.lr"),
        (
            ("--timeout", "5", file),
            3,
            "the cluster gave 3 ranks no place within 5 s: it has 2 CPUs",
        ),
    ):
        process = start(cluster, tmp_path, *arguments, workers=workers)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 2
        assert words in error
    assert sorted(tmp_path.iterdir()) == before, "nothing is written"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves(signum: int, cluster: Any, tmp_path: Path) -> None:
    process = start(cluster, tmp_path, recipe(tmp_path, max_steps=10**5, save_steps=10**5))
    deadline = time.monotonic() + 120
    while len(lines(tmp_path)) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signum)
    process.communicate(timeout=120)
    assert process.returncode == 130
    (run,) = tmp_path.glob("grpo_*")
    assert json.loads((run / "run.json").read_text())["state"] == "interrupted"
    assert list(run.glob("checkpoint-*"))


def test_no_secret_goes_to_the_cluster(cluster: Any, tmp_path: Path) -> None:
    """The caller's variables stay with the caller: what a rank needs is in its node's, or .env."""
    reward = tmp_path / "looking.py"
    reward.write_text(
        "import os\n"
        "def reward(prompts, completions, completion_ids, **columns):\n"
        f"    open({str(tmp_path / 'seen')!r}, 'a').write(repr(dict(os.environ)))\n"
        "    return [float(len(set(ids))) for ids in completion_ids]\n"
    )
    tree = tiny.run_config(tmp_path, "grpo", max_steps=1)
    tree["reward"] = {"type": "custom", "path": str(reward)}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(tree))
    process = start(cluster, tmp_path, file)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error[-2000:]
    assert "RANK" in (tmp_path / "seen").read_text()
    assert "canarycanary" not in (tmp_path / "seen").read_text()
