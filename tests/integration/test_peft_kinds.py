"""Runs that train adapters of PEFT: resumed bit for bit, on two ranks, sampled, with every head."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from repeats import choice
from safetensors.torch import load_file
from test_distributed import launch, steps
from test_resume import assert_same_bits, metrics, run, run_killed_and_resumed

from posttrain.model.adapters import ADAPTERS, LORA, PEFT
from posttrain.model.folder import checkpoints_in
from posttrain.runs.config import parse_config
from posttrain.runs.plan import plan
from posttrain.training.sharding import shard, share_tensors
from posttrain.training.trainer import Trainer

SETTINGS: dict[str, dict[str, Any]] = {
    "adamss": {"r": 4, "num_subspaces": 2},
    "c3a": {"block_size": 8},
    "fourierft": {"n_frequency": 20},
    "oft": {"oft_block_size": 8, "module_dropout": 0.1},
    "road": {"group_size": 8},
    "trainable_tokens": {"token_indices": [5, 6, 11]},
    "unilora": {"theta_d_length": 32},
    "vblora": {"num_vectors": 16, "vector_length": 8, "vblora_dropout": 0.1},
    "vera": {"r": 8, "vera_dropout": 0.1},
    "waveft": {"n_frequency": 20},
    "loha": {"r": 2, "rank_dropout": 0.1},
    "lora": {"lr_ratio": 4, "modules_to_save": ["model.norm"], "rank_pattern": {"q_proj": 2}},
}
RANKED = ("deft", "delora", "glora", "gralora", "hira", "hra", "lora", "rslora", "dora", "pissa")
RANKED += ("olora", "miss", "peanut", "randlora", "shira")
KINDS = [name for name, entry in ADAPTERS.items() if entry in (LORA, PEFT)]
SHARED_TENSORS = ("tinylora", "unilora", "vblora")
"""Kinds whose trained tensors belong to all layers."""


def section(kind: str) -> dict[str, Any]:
    return {"type": kind} | ({"r": 4} if kind in RANKED else {}) | SETTINGS.get(kind, {})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, whose tokenizer and chat template the runs on it take over."""
    return run(tiny.run_config(tmp_path_factory.mktemp("base") / "run", "sft", max_steps=2))


@pytest.mark.parametrize("kind", choice(KINDS, ("lora", "vblora")))
def test_train_2n_equals_train_n_and_resume(
    kind: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_tree, parts_tree = (
        tiny.run_config(tmp_path / name, "sft", save_steps=2, max_steps=5)
        | {"model": {"name": str(base), "adapter": section(kind)}}
        for name in ("whole", "parts")
    )
    whole = run(whole_tree)
    parts = run_killed_and_resumed(parts_tree, 3, monkeypatch)
    assert metrics(whole) == metrics(parts)
    assert_same_bits(whole, parts)


@pytest.mark.parametrize("kind", choice(KINDS, ("pissa",)))
def test_a_checkpoint_is_trained_further(kind: str, base: Path, tmp_path: Path) -> None:
    tree = tiny.run_config(tmp_path / "first", "sft", max_steps=2)
    first = run(tree | {"model": {"name": str(base), "adapter": section(kind)}})
    tree = tiny.run_config(tmp_path / "second", "dpo", max_steps=2)
    second = run(tree | {"model": {"name": str(first)}})
    assert steps(second)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps(second)[-1]["loss"] != pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("kind", choice(KINDS, ("pissa", "ia3")))
def test_dpo_begins_at_ln_2(kind: str, base: Path, tmp_path: Path) -> None:
    tree = tiny.run_config(tmp_path, "dpo", max_steps=2)
    result = steps(run(tree | {"model": {"name": str(base), "adapter": section(kind)}}))
    assert result[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


ONLINE = ("ln_tuning", "oft", "vera", "trainable_tokens")


@pytest.mark.parametrize("kind", choice(KINDS, ONLINE[:2]))
def test_the_sampler_agrees_with_the_trainer(kind: str, base: Path, tmp_path: Path) -> None:
    """After steps large enough that a decoding step without the adapter would show."""
    tree = tiny.run_config(tmp_path, "grpo", max_steps=4, learning_rate=3e-2, batch_size=2)
    tree["model"] = {"name": str(base), "adapter": section(kind), "dtype": "float32"}
    rows = steps(run(tree))
    key = "sampling/sampling_logp_difference/max"
    found = [row[key] for row in rows if key in row]  # a step may have no group with a signal
    assert found
    assert max(found) < 1e-4


@pytest.mark.parametrize("kind", choice(("vera", "lora", "pissa", "ia3"), ("vera",)))
def test_the_sampler_s_copy_follows_the_adapter(kind: str, base: Path, tmp_path: Path) -> None:
    tree = tiny.run_config(tmp_path, "reinforce", max_steps=4, learning_rate=3e-2, batch_size=2)
    tree["rollout"] |= {"one_step_off": True}
    tree["trainer"] |= {"sampler_correction": "sequence"}
    tree["model"] = {"name": str(base), "adapter": section(kind), "dtype": "float32"}
    run(tree)


@pytest.mark.parametrize("method", choice(("ppo", "reward_model", "classification"), ("ppo",)))
@pytest.mark.parametrize("kind", choice(("vera", "pissa", "trainable_tokens", "ia3"), ("vera",)))
def test_heads_are_saved_beside_the_adapter(
    kind: str, method: str, base: Path, tmp_path: Path
) -> None:
    tree = tiny.run_config(tmp_path / "a", method, max_steps=2)
    tree["model"] = {"name": str(base), "adapter": section(kind)}
    result = run(tree)
    if method == "ppo":
        return
    again = tiny.run_config(tmp_path / "b", method, max_steps=1)
    again["model"] = {"name": str(result)}
    first = plan(parse_config(again, "test")).models.policy
    assert first.head is not None
    assert first.head.weight.any()


TWO_RANKS = ("vera", "pissa", "oft", "ia3", "lora", "dora", "vblora", "trainable_tokens")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "strategy"),
    [(k, s) for k in TWO_RANKS for s in ("ddp", "fsdp") if (k, s) != ("vblora", "fsdp")],
)
def test_two_ranks_equal_one(kind: str, strategy: str, base: Path, tmp_path: Path) -> None:
    keys = {"max_steps": 3, "batch_size": 5, "micro_batch_tokens": 90, "learning_rate": 1e-3}
    tree = tiny.run_config(tmp_path, "sft", **keys)
    settings = {k: v for k, v in section(kind).items() if "dropout" not in k}
    tree["model"] = {"name": str(base), "adapter": settings}
    tree["distributed"] = {"strategy": strategy}
    one, two = (launch(tree, tmp_path / strategy, ranks) for ranks in (1, 2))
    for a, b in zip(steps(one), steps(two), strict=True):
        for name in ("loss", "grad_norm", "num_tokens"):
            assert b[name] == pytest.approx(a[name], rel=5e-4, abs=1e-6), name
    left, right = (
        load_file(checkpoints_in(r)[-1] / "adapter_model.safetensors") for r in (one, two)
    )
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(right[name], left[name], rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_several_layers_are_not_sharded(kind: str) -> None:
    keys = section(kind)
    if kind == "trainable_tokens":
        keys["token_indices"] = [5, 6]
    policy = tiny.models("llama", adapter=keys).policy
    assert share_tensors(policy) == (kind in SHARED_TENSORS)
    if kind in SHARED_TENSORS:
        with pytest.raises(ValueError, match=r"cannot be sharded: set distributed\.strategy: ddp"):
            shard(policy)


def test_lora_plus_reaches_the_optimiser(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scales: list[set[float]] = []
    whole = Trainer.train_step

    def seen(self: Trainer) -> dict[str, float]:
        scales.append({group["lr_scale"] for group in self.optimizer.param_groups})
        return whole(self)

    monkeypatch.setattr(Trainer, "train_step", seen)
    tree = tiny.run_config(tmp_path, "sft", max_steps=1)
    run(tree | {"model": {"name": str(base), "adapter": {"type": "lora", "lr_ratio": 16}}})
    assert scales == [{1.0, 16.0}]
