"""The dry run's memory: parts, whether they fit, and the value that would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from posttrain.model.config import ModelConfig
from posttrain.model.quantized import BESIDE
from posttrain.rollout.config import RolloutConfig
from posttrain.runs.config import parse_config
from posttrain.runs.memory import available, estimate, measure, verdict
from posttrain.runs.plan import Plan, plan
from posttrain.training.config import DistributedConfig


def planned(tmp_path: Path, method: str = "sft", **trainer: Any) -> Plan:
    return plan(parse_config(tiny.run_config(tmp_path, method, **trainer), "test"))


def test_the_tokens_of_a_micro_batch_are_those_that_are_run_together(tmp_path: Path) -> None:
    run = planned(tmp_path, micro_batch_tokens=100, batch_size=4)
    lengths = sorted(len(s) for (s,) in run.data.examples)
    assert measure(run).tokens == max(100, lengths[-1])
    wide = planned(tmp_path, micro_batch_tokens=10_000, batch_size=4)
    assert measure(wide).tokens == sum(lengths[-4:]), "no more than a step has"


def test_a_pair_is_never_cut(tmp_path: Path) -> None:
    run = planned(tmp_path, "dpo", micro_batch_tokens=1)
    lengths = sorted(len(s) for pair in run.data.examples for s in pair)
    assert measure(run).longest == sum(lengths[-2:])
    assert "reference" in measure(run).fixed


def test_what_fits_is_said(tmp_path: Path) -> None:
    run = planned(tmp_path)
    found = measure(run)
    assert verdict(run, found, found.total)[0].startswith("it fits")
    assert "it fits" in estimate(run)


def test_on_a_gpu_the_models_that_the_plan_has_loaded_count_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 9)
    assert available(torch.device("cuda")) == 79


def test_the_value_that_would_fit_does(tmp_path: Path) -> None:
    run = planned(tmp_path, micro_batch_tokens=400, batch_size=20)
    found = measure(run)
    room = sum(found.fixed.values()) + round(found.per_token * 0.5 * found.tokens)
    (line,) = verdict(run, found, room)
    assert "it does not fit" in line
    value = int(line.partition("trainer.micro_batch_tokens=")[2].split()[0])
    assert found.longest <= value < found.tokens
    again = planned(tmp_path, micro_batch_tokens=value, batch_size=20)
    assert verdict(again, measure(again), room)[0].startswith("it fits")


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.5, "even without activations; try a smaller model"),
        (1.0001, r"with any trainer.micro_batch_tokens; try model.gradient_checkpointing=true"),
    ],
)
def test_where_no_value_fits_something_else_is_named(
    tmp_path: Path, share: float, expected: str
) -> None:
    run = planned(tmp_path)
    found = replace(measure(run), per_token=1e6)
    (line,) = verdict(run, found, round(share * sum(found.fixed.values())))
    assert expected in line


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return planned(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("kind", ["lora", "vera", "pissa", "hra", "tinylora", "road"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("engine", [None, "native", "vllm", "server"])
@pytest.mark.parametrize("stored", [None, "none", "nf4"])
def test_only_what_would_be_accepted_is_proposed(
    once: Plan, kind: str, strategy: str, engine: str | None, stored: str | None
) -> None:
    keys = {"name": "m", "adapter": {"type": kind}, "quantization": stored}
    changes: dict[str, Any] = {
        "model": ModelConfig.model_validate(keys),
        "distributed": DistributedConfig(strategy=strategy),
        "rollout": None if engine is None else RolloutConfig.model_construct(engine=engine),
    }
    run = replace(once, config=once.config.model_copy(update=changes))
    found = replace(measure(once), per_token=1e6)
    (line,) = verdict(run, found, round(0.5 * sum(found.fixed.values())))
    beside, native = kind in BESIDE, engine in (None, "native")
    accepted = beside and strategy == "ddp" and native and stored is None
    assert ("model.quantization=nf4" in line) == accepted
    assert "a smaller model" in line
