"""Ranks that split matrices, rows and data give the numbers of one process, for every method."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from ranks import command, exit_codes
from safetensors.torch import load_file
from test_distributed import assert_same_run, launch, steps

from posttrain.algorithms import ALGORITHMS
from posttrain.model.folder import checkpoints_in

pytestmark = pytest.mark.distributed

MESHES = {
    "ddp 2": ("ddp", 2, 1, 1),
    "ddp 4": ("ddp", 4, 1, 1),
    "fsdp 2": ("fsdp", 2, 1, 1),
    "fsdp 4": ("fsdp", 4, 1, 1),
    "tp 2": ("ddp", 2, 2, 1),
    "sp 2": ("ddp", 2, 1, 2),
    "ddp 2 x tp 2": ("ddp", 4, 2, 1),
    "ddp 2 x sp 2": ("ddp", 4, 1, 2),
    "fsdp 2 x tp 2": ("fsdp", 4, 2, 1),
    "fsdp 2 x sp 2": ("fsdp", 4, 1, 2),
    "tp 2 x sp 2": ("ddp", 4, 2, 2),
}
"""Strategy, ranks, tensor_parallel and sequence_parallel."""
FAST = {("grpo", "tp 2"), ("dpo", "sp 2")}


def recipe(folder: Path, method: str, **keys: Any) -> dict[str, Any]:
    # a step of ppo has 4 passes
    keys = {"max_steps": 2 if method == "ppo" else 5} | keys
    keys = {"batch_size": 5, "micro_batch_tokens": 90, "learning_rate": 1e-4} | keys
    if method == "grpo":
        keys |= {"beta": 0.05, "batch_size": 3}
    tree = tiny.run_config(folder, method, **keys)
    tree["model"]["scratch"] |= {"num_heads": 4, "num_kv_heads": 2}
    return tree


def distributed(strategy: str, tensor: int, sequence: int) -> dict[str, Any]:
    return {
        "strategy": strategy,
        "tensor_parallel": tensor,
        "sequence_parallel": sequence,
        "timeout": 120,
    }


def apart(one: Path, other: Path) -> dict[str, float]:
    """The largest relative differences of loss, gradient norm and parameters of two runs."""
    found = {"loss": 0.0, "grad_norm": 0.0, "parameters": 0.0}
    for a, b in zip(steps(one), steps(other), strict=True):
        assert a["num_tokens"] == b["num_tokens"]
        for name in ("loss", "grad_norm"):
            # the loss of a method may be near 0, as the sum of shares of either sign
            size = max(abs(a[name]), 1e-2)
            found[name] = max(found[name], abs(a[name] - b[name]) / size)
    left, right = (load_file(checkpoints_in(r)[-1] / "model.safetensors") for r in (one, other))
    assert left.keys() == right.keys()
    for name, value in left.items():
        # Adam makes steps of rounding if a gradient is 0 but for that, as a key's bias has it
        torch.testing.assert_close(right[name], value, rtol=1e-3, atol=3e-5)
    whole, other_whole = (torch.cat([x.flatten() for x in side.values()]) for side in (left, right))
    found["parameters"] = float((other_whole - whole).norm() / whole.norm())
    return found


@pytest.fixture(scope="module")
def singles(tmp_path_factory: Any) -> Callable[[str], Path]:
    """A method's run on one process, made once."""

    @functools.cache
    def of(method: str) -> Path:
        folder = tmp_path_factory.mktemp(method)
        return launch(recipe(folder, method), folder / "runs", 1)

    return of


@pytest.mark.parametrize(
    ("method", "mesh"),
    [
        pytest.param(method, mesh, marks=() if (method, mesh) in FAST else pytest.mark.slow)
        for method in ALGORITHMS
        for mesh in MESHES
    ],
)
def test_a_mesh_equals_one_process(method, mesh, tmp_path, singles):
    strategy, ranks, tensor, sequence = MESHES[mesh]
    tree = recipe(tmp_path, method)
    one = singles(method)
    tree["distributed"] = distributed(strategy, tensor, sequence)
    found = apart(one, launch(tree, tmp_path / "runs", ranks))
    print(method, mesh, {name: f"{value:.1e}" for name, value in found.items()})
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("more", [[], pytest.param(["--dry-run"], marks=pytest.mark.slow)])
def test_what_ranks_cannot_split_is_said_before_anything_is_written(more, strategy, tmp_path):
    """In one line, also of a model that each rank reads whole before it is sharded."""
    tree = recipe(tmp_path, "sft")
    tree["model"]["scratch"]["num_kv_heads"] = 1
    tree["trainer"]["output_dir"] = str(tmp_path / "runs")
    tree["distributed"] = distributed(strategy, 2, 1)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    words = ["train", str(tmp_path / "recipe.yaml"), *more]
    assert exit_codes(2, tmp_path / "output", words, lambda processes: None) == [2, 2]
    said = (tmp_path / "output/0.stderr").read_text().splitlines()
    (line,) = [x for x in said if "[c10d]" not in x]  # torch's own, which launch hides
    assert "2 ranks do not divide the 1 heads" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_labels_read_from_the_vocabulary(tmp_path):
    """Their tokens lie in the parts of different ranks."""
    tree = recipe(tmp_path, "classification")
    tree["trainer"]["mode"] = "label_tokens"
    one = launch(tree, tmp_path / "runs", 1)
    tree["distributed"] = distributed("ddp", 2, 1)
    found = apart(one, launch(tree, tmp_path / "runs", 2))
    assert max(found.values()) < 1e-5, found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "reft"])
@pytest.mark.parametrize(("tensor", "sequence"), [(2, 1), (1, 2)])
def test_adapters(kind, tensor, sequence, tmp_path):
    base = launch(recipe(tmp_path, "sft", max_steps=1), tmp_path / "base", 1)
    tree = recipe(tmp_path, "sft", learning_rate=1e-2)
    adapter: dict[str, Any] = {"type": "lora", "r": 4}
    if kind == "reft":
        adapter = {"type": "loreft", "rank": 2}
    tree["model"] = {"name": str(base), "adapter": adapter}
    one = launch(tree, tmp_path / "runs", 1)
    tree["distributed"] = distributed("ddp", tensor, sequence)
    two = launch(tree, tmp_path / "runs", 2)
    assert_same_run_of_adapters(one, two)


def assert_same_run_of_adapters(one: Path, other: Path) -> None:
    for a, b in zip(steps(one), steps(other), strict=True):
        for name in ("loss", "grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-4), name
    (file,) = (f.name for f in checkpoints_in(one)[-1].glob("*.safetensors"))
    left, right = (load_file(checkpoints_in(run)[-1] / file) for run in (one, other))
    for name in left:
        torch.testing.assert_close(right[name], left[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "grpo", "ppo"])
def test_a_run_continues_on_another_mesh(method, tmp_path):
    """Saved by fsdp 2 x tp 2, resumed with rows split, then by one process."""
    tree = recipe(tmp_path, method, save_steps=1, max_steps=3, keep_checkpoints=5)
    one = launch(tree, tmp_path / "runs", 1)
    tree["distributed"] = distributed("fsdp", 2, 1)
    run = launch(tree, tmp_path / "runs", 4)
    tree["trainer"]["resume_from_checkpoint"] = str(run)
    for left, (ranks, keys) in (
        (1, (2, distributed("ddp", 1, 2))),
        (2, (1, distributed("ddp", 1, 1))),
    ):
        for folder in checkpoints_in(run)[left:]:
            shutil.rmtree(folder)
        tree["distributed"] = keys
        launch(tree, tmp_path / "runs", ranks, run)
    assert_same_run(one, run)
    assert steps(run)[-1]["step"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_layers_that_keep_their_weights_for_the_backward_pass(method, tmp_path):
    """Also passes without gradients, of the reference and of an evaluation, leave only shards."""
    tree = recipe(tmp_path, method, eval_steps=2)
    if method == "dpo":
        tree["eval"] = {"split": 0.2}
    else:
        tree["eval"] = {"tasks": ["word_problems"], "max_samples": 3, "max_new_tokens": 4}
    one = launch(tree, tmp_path / "runs", 1)
    tree["distributed"] = distributed("fsdp", 1, 1) | {"reshard_after_forward": False}
    assert_same_run(one, launch(tree, tmp_path / "runs", 2))


@pytest.mark.slow
def test_gradients_summed_in_bf16_differ_a_little(tmp_path):
    tree = recipe(tmp_path, "sft")
    tree["distributed"] = distributed("fsdp", 1, 1)
    exact = launch(tree, tmp_path / "exact", 2)
    tree["distributed"]["reduce_dtype"] = "bfloat16"
    rough = launch(tree, tmp_path / "rough", 2)
    pairs = [(a["grad_norm"], b["grad_norm"]) for a, b in zip(steps(exact), steps(rough))]
    assert 1e-5 < max(abs(a - b) / a for a, b in pairs) < 1e-2


@pytest.mark.slow
def test_evaluation_on_a_mesh(tmp_path):
    """Held-out rows, sampled problems and likelihoods, during training."""
    tree = recipe(tmp_path, "sft", max_steps=2, eval_steps=1)
    tree["eval"] = {
        "tasks": ["word_problems"],
        "max_samples": 5,
        "max_new_tokens": 8,
    }
    one = launch(tree, tmp_path / "runs", 1)
    tree["distributed"] = distributed("ddp", 2, 1)
    two = launch(tree, tmp_path / "runs", 2)
    for a, b in zip(steps(one), steps(two), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if name.startswith("eval") and "time" not in name and "per_second" not in name:
                assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-7), name


@pytest.mark.slow
def test_models_are_asked_on_ranks_that_split_them(tmp_path):
    """`eval` and `generate`: 7 problems and 3 rows, with other shares for each rank."""
    model = launch(recipe(tmp_path, "sft", max_steps=2), tmp_path / "runs", 1)
    pairs = tmp_path / "crows_pairs_anonymized.csv"
    pairs.write_text(
        "sent_more,sent_less,stereo_antistereo,bias_type\n"
        "Tom has 3 apples.,Tom has 4 apples.,stereo,age\n"
        "Ann buys 2 cups.,Ann buys 5 cups.,antistereo,age\n"
        "Ann buys 2 cups.,Tom buys 2 cups.,stereo,gender\n"
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "{i} and {i}?"}}\n' for i in range(3)))
    found, written = [], []
    for ranks, parts in ((1, 1), (2, 2)):
        output = tmp_path / str(ranks)
        tasks = f"word_problems,crows_pairs={pairs}"
        asked = f"--max-samples 7 --max-new-tokens 8 -n 2 --temperature 1 --tensor-parallel {parts}"
        eval_ = ["eval", str(model), "--tasks", tasks, *asked.split(), "--output", str(output)]
        command(ranks, tmp_path, eval_)
        found.append(json.loads((output / "results.json").read_text()))
        lines = (output / "results.samples/word_problems.jsonl").read_text().splitlines()
        written.append([json.loads(line)["completion"] for line in lines])
        file = tmp_path / f"{ranks}.jsonl"
        asked = f"--max-new-tokens 8 -n 2 --tensor-parallel {parts} --file {rows} --output {file}"
        command(ranks, tmp_path, ["generate", str(model), *asked.split()])
        written[-1] += [json.loads(line)["completion"] for line in file.read_text().splitlines()]
    assert len(written[0]) == 7 * 2 + 3 * 2
    assert written[0] == written[1]
    assert rounded(found[0]) == rounded(found[1])


def rounded(value: Any) -> Any:
    """JSON with four decimals: log-probs differ by rounding."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value
