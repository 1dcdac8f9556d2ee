"""AdamW with its state in the CPU's memory updates as AdamW does, to the bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from ranks import command
from test_resume import assert_same_bits, metrics

from posttrain.runs.config import parse_config
from posttrain.runs.train import train
from posttrain.training.offload import OffloadedAdamW
from posttrain.training.optim import build_optimizer


def run(tree: dict[str, Any], offload: str = "none") -> Path:
    return train(parse_config(tree | {"distributed": {"offload": offload}}, "test"))


def trained(offload: bool) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Parameters after five updates with other rates and gradients, one without, and the state."""
    torch.manual_seed(3)
    shapes = {"a.weight": (300, 7), "a.lora_B.weight": (5, 41), "a.bias": (3,), "unused": (2, 2)}
    parameters = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    config = tiny.config_of("sft", weight_decay=0.3)
    optimizer = build_optimizer(parameters, config, 4.0, offload)
    assert isinstance(optimizer, OffloadedAdamW) == offload
    for step in range(5):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * group["lr_scale"] / (1 + step)
        for name, parameter in parameters.items():
            if name != "unused" and (name, step) != ("a.bias", 2):
                parameter.grad = torch.randn(parameter.shape)
        optimizer.step()
        optimizer.zero_grad()
    state = {
        f"{name}/{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    return {name: p.detach() for name, p in parameters.items()}, state


def test_updates_have_the_bits_of_adamw() -> None:
    for plain, offloaded in zip(trained(False), trained(True), strict=True):
        assert plain.keys() == offloaded.keys()
        assert all(torch.equal(plain[name], offloaded[name]) for name in plain)


@pytest.mark.parametrize(("first", "then"), [("none", "optimizer"), ("optimizer", "none")])
def test_a_run_resumes_with_the_state_elsewhere(first: str, then: str, tmp_path: Path) -> None:
    keys = {"save_steps": 2, "keep_checkpoints": 9, "max_steps": 4}
    tree = tiny.run_config(tmp_path, "sft", **keys)
    whole = run(tree, first)
    parts = tmp_path / "parts"
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoint-4")
    tree["trainer"]["resume_from_checkpoint"] = str(parts)
    assert run(tree, then) == parts
    assert metrics(whole) == metrics(parts)
    assert_same_bits(whole, parts)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("offload", ["optimizer", "parameters"])
@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_shards(method: str, offload: str, tmp_path: Path) -> None:
    """Two ranks of fsdp, resumed by one process."""
    folders = [tmp_path / name for name in ("plain", "offloaded")]
    for folder in folders:
        folder.mkdir()
        keys = {"save_steps": 2, "keep_checkpoints": 9, "max_steps": 4}
        tree = tiny.run_config(folder, method, **keys)
        away = offload if folder.name == "offloaded" else "none"
        tree["distributed"] = {"strategy": "fsdp", "offload": away}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
        command(2, folder / "out", ["train", str(folder / "recipe.yaml")])
    plain, offloaded = (next(folder.glob(f"{method}_*")) for folder in folders)
    assert_same_bits(plain, offloaded)
    before = metrics(offloaded)
    shutil.rmtree(offloaded / "checkpoint-4")
    tree["trainer"]["resume_from_checkpoint"] = str(offloaded)
    tree["distributed"] = {"offload": offload}
    train(parse_config(tree, "test"))
    for now, then in zip(metrics(offloaded), before, strict=True):
        assert now["loss"] == pytest.approx(then["loss"], rel=1e-4, abs=1e-6)
