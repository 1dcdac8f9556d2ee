"""Two ranks give the loss, the gradient norm and the parameters of one process."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from ranks import command
from repeats import choice
from safetensors.torch import load_file

from posttrain.algorithms import ALGORITHMS
from posttrain.model.folder import checkpoints_in
from posttrain.runs.config import parse_config
from posttrain.runs.train import train
from posttrain.training.trainer_state import STATE

pytestmark = pytest.mark.distributed


def launch(
    tree: dict, folder: Path, ranks: int, run_dir: Path | None = None, machines: int = 1
) -> Path:
    folder.mkdir(exist_ok=True)
    tree["trainer"]["output_dir"] = str(folder / f"runs-{ranks}")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    command(ranks, folder / f"output-{ranks}", ["train", str(recipe)], machines)
    if run_dir is None:
        (run_dir,) = (folder / f"runs-{ranks}").iterdir()
    return run_dir


def torchrun(ranks: int, arguments: list[str]) -> str:
    """What the command writes to stdout, started as users start it."""
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(ranks),
        "--master-port",
        "0",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
        "-m",
        "posttrain",
    ]
    done = subprocess.run(
        [*launcher, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def steps(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


EACH = [(method, strategy) for method in ALGORITHMS for strategy in ("ddp", "fsdp")]


@pytest.mark.parametrize(
    ("method", "strategy"), choice(EACH, [("sft", "ddp"), ("kto", "fsdp"), ("grpo", "fsdp")])
)
def test_two_ranks_equal_one(method, strategy, tmp_path):
    # 5 rows a step over 2 ranks, one micro-batch per row: the ranks' shares are of unequal size
    keys = {
        "max_steps": 4,
        "batch_size": 5,
        "micro_batch_tokens": 90,
        "learning_rate": 1e-3,
        "max_grad_norm": 0.5,
    }
    if method == "grpo":
        # with seed 0 a token of step 4 lies so near the edge between two that rounding decides
        keys |= {"beta": 0.05, "num_minibatches": 2, "batch_size": 3, "seed": 1}
    if method == "ppo":  # its step is 4 epochs, of the policy and of the values
        keys["max_steps"] = 2
    tree = tiny.run_config(tmp_path, method, **keys)
    tree["distributed"] = {"strategy": strategy}
    if method == "dpo":  # a forward pass between sharding and the optimiser
        tree["trainer"]["precompute_reference"] = True
    if method == "kto":
        tree["reference"] = {"sync_steps": 2, "sync_alpha": 0.5}
    if method == "kto_pair":  # a second model beside the policy
        other = tiny.run_config(tmp_path, method, **keys | {"max_steps": 2})
        tree["reference"] = {"name": str(launch(other, tmp_path / "other", ranks=1))}
    if method == "sft":  # a task on the way, its problems shared out
        tree["eval"] = {"tasks": ["word_problems"], "max_samples": 5, "max_new_tokens": 8}
        tree["trainer"]["eval_steps"] = 2
    if method == "rloo":  # groups without signal, replaced across ranks
        tree["rollout"]["max_resamples"] = 2
        (tmp_path / "reward.py").write_text(
            "def reward(prompts, completions, completion_ids, **columns):\n"
            "    return [float(len(set(ids)) > 14) for ids in completion_ids]\n"
        )
    if method == "reinforce":  # sampled ahead, in a thread beside the collectives of training
        tree["rollout"]["one_step_off"] = True
        tree["trainer"] |= {"sampler_correction": "sequence", "save_steps": 2}
    one, two = (launch(tree, tmp_path / strategy, ranks) for ranks in (1, 2))
    for a, b in zip(steps(one), steps(two), strict=True):
        for name in (
            "loss",
            "grad_norm",
            "num_tokens",
            "reward",
            "kl",
            "entropy",
            "num_resampled",
            "sampling/staleness",
            "eval_word_problems/mean_length",
            "eval_word_problems/accuracy",
        ):
            if name in a:
                assert b[name] == pytest.approx(a[name], rel=2e-4, abs=1e-7), name
    if method == "rloo":
        assert steps(one)[-1]["num_resampled"] > 0, "nothing was replaced: nothing is tested"
    left, right = (load_file(checkpoints_in(r)[-1] / "model.safetensors") for r in (one, two))
    assert left.keys() == right.keys()
    for name in left:
        # Adam divides by the gradient's own size: rounding shows most where that is near 0
        torch.testing.assert_close(right[name], left[name], rtol=1e-3, atol=3e-5)


@pytest.mark.slow  # a task on the way of a training is shared out above
def test_two_ranks_evaluate_as_one_does(tmp_path):
    """7 problems and 3 pairs: the ranks' shares are of unequal size."""
    model = train(parse_config(tiny.run_config(tmp_path, "sft", max_steps=2), "test"))
    pairs = tmp_path / "crows_pairs_anonymized.csv"
    pairs.write_text(
        "sent_more,sent_less,stereo_antistereo,bias_type\n"
        "Tom has 3 apples.,Tom has 4 apples.,stereo,age\n"
        "Ann buys 2 cups.,Ann buys 5 cups.,antistereo,age\n"
        "Ann buys 2 cups.,Tom buys 2 cups.,stereo,gender\n"
    )
    options = ["--max-samples", 7, "--max-new-tokens", 8, "-n", 3, "--temperature", 1]
    found, shown, samples = [], [], []
    for ranks in (1, 2):
        output = tmp_path / str(ranks)
        tasks = f"word_problems,crows_pairs={pairs}"
        again = list(map(str, ["eval", model, "--tasks", tasks, *options, "--output", output]))
        shown.append(command(1, tmp_path, again) if ranks == 1 else torchrun(ranks, again))
        found.append(json.loads((output / "results.json").read_text()))
        lines = (output / "results.samples/word_problems.jsonl").read_text().splitlines()
        samples.append([json.loads(line) for line in lines])
    assert "already finished" in command(2, tmp_path, again)
    about_ranks, _, table = shown[1].partition("\n")
    assert about_ranks.startswith("2 ranks: ")
    assert shown[0] == table
    assert len(samples[0]) == 21
    assert samples[0] == samples[1]
    one, two = (x["crows_pairs"].pop("mean_difference") for x in found)
    assert two == pytest.approx(one, rel=1e-4)
    assert found[0] == found[1]


# grpo: groups whose advantages are scaled by the whole step's; ppo: values of whole batches
@pytest.mark.slow  # in make test-distributed
@pytest.mark.parametrize(("method", "strategy"), choice(EACH, [("grpo", "fsdp")]))
def test_a_rank_without_an_example_changes_nothing(method, strategy, tmp_path):
    """A step of two rows, then one of the third, over three ranks; for sft one held-out row."""
    keys = {"max_steps": 3, "batch_size": 2, "learning_rate": 1e-3, "num_epochs": None}
    if method == "grpo":
        keys |= {"beta": 0.05, "scale_rewards": "batch", "whiten_advantages": True}
    tree = tiny.run_config(tmp_path, method, **keys)
    tree["distributed"] = {"strategy": strategy}
    tree["data"]["max_samples"] = 3
    if method == "sft":
        tree["eval"] = {"max_samples": 1}
        tree["data"]["max_samples"] = 4
        tree["trainer"]["eval_steps"] = 1
    one, three = (launch(tree, tmp_path / strategy, ranks) for ranks in (1, 3))
    for a, b in zip(steps(one), steps(three), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if not re.search("time|per_second|memory/|sampling|learning_rate|clip_ratio", name):
                assert b[name] == pytest.approx(a[name], rel=5e-4, abs=1e-5), name
    left, right = (load_file(checkpoints_in(r)[-1] / "model.safetensors") for r in (one, three))
    for name in left:
        torch.testing.assert_close(right[name], left[name], rtol=1e-3, atol=3e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo", "grpo", "ppo"])
def test_shards_on_each_of_two_machines(method, tmp_path):
    """hsdp: 2 x 2 ranks give the numbers of one, and a checkpoint that ddp resumes."""
    tree = tiny.run_config(tmp_path, method, max_steps=4, batch_size=5, save_steps=2, seed=1)
    one = launch(tree, tmp_path / "hsdp", 1)
    tree["distributed"] = {"strategy": "hsdp"}
    four = launch(tree, tmp_path / "hsdp", 4, machines=2)
    assert_same_run(one, four)
    shutil.rmtree(four / "checkpoint-4")
    tree["distributed"] = {"strategy": "ddp"}
    tree["trainer"]["resume_from_checkpoint"] = str(four)
    assert_same_run(one, launch(tree, tmp_path / "hsdp", 2, four))


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The trained weights, of a model or of an adapter."""
    (file,) = {"model.safetensors", "adapter_model.safetensors"} & set(os.listdir(checkpoint))
    return load_file(checkpoint / file)


def assert_same_run(one: Path, other: Path) -> None:
    for a, b in zip(steps(one), steps(other), strict=True):
        for name in ("loss", "grad_norm", "num_tokens", "reward", "kl"):
            if name in a:
                assert b[name] == pytest.approx(a[name], rel=5e-4, abs=1e-6), name
    left, right = (weights_of(checkpoints_in(run)[-1]) for run in (one, other))
    for name in left:
        torch.testing.assert_close(right[name], left[name], rtol=1e-3, atol=3e-5)


@pytest.mark.slow  # in make test-distributed
def test_two_ranks_resume_with_dropout(tmp_path):
    """Each rank drops other units: its generator is part of the checkpoint."""
    base = launch(tiny.run_config(tmp_path, "sft", max_steps=1), tmp_path / "base", ranks=1)
    tree = tiny.run_config(tmp_path, "sft", max_steps=4, save_steps=2, learning_rate=1e-2)
    tree["model"] = {"name": str(base), "use_lora": True, "lora": {"r": 4, "dropout": 0.3}}
    whole = checkpoints_in(launch(tree, tmp_path / "whole", ranks=2))
    random = torch.load(whole[0] / STATE, weights_only=True)["random"]
    assert not torch.equal(random[0]["cpu"], random[1]["cpu"])
    begun = tmp_path / "begun"
    shutil.copytree(whole[0], begun / whole[0].name)
    tree["trainer"]["resume_from_checkpoint"] = str(begun)
    launch(tree, tmp_path / "parts", ranks=2, run_dir=begun)
    left, right = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (whole[-1], checkpoints_in(begun)[-1])
    )
    assert whole[-1].name == checkpoints_in(begun)[-1].name == "checkpoint-4"
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_rank_that_has_finished_leaves_without_finalization():
    # a finalized interpreter is what a late thread of gloo aborts on
    program = """
import atexit, sys
from posttrain.cli.main import app, main
from posttrain.common import distributed

class Late:
    def __del__(self):
        print("finalized")

late = Late()
atexit.register(print, "atexit")

@app.command()
def meet():
    distributed.start("cpu")
    distributed.barrier()
    distributed.stop()
    print("met")

sys.argv = ["posttrain", "meet"]
main()
"""
    alone = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | alone,
    )
    assert (done.returncode, done.stdout) == (0, "met\natexit\n"), done.stderr[-3000:]
