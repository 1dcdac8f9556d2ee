"""What `distributed.strategy: auto` becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from posttrain.common import distributed
from posttrain.runs import strategy
from posttrain.runs.config import parse_config
from posttrain.runs.memory import measure
from posttrain.runs.plan import Plan, plan
from posttrain.runs.strategy import settle_strategy


@pytest.fixture(scope="module")
def planned(tmp_path_factory: Any) -> Plan:
    return plan(parse_config(tiny.run_config(tmp_path_factory.mktemp("plan")), "recipe"))


def settled(planned: Plan, monkeypatch: Any, ranks: int, room: int) -> tuple[str, str]:
    monkeypatch.setattr(distributed, "num_ranks", lambda: ranks)
    monkeypatch.setattr(distributed, "all_gather", lambda value: [value] * ranks)
    monkeypatch.setattr(strategy, "memory_of_rank", lambda device: room)
    found, why = settle_strategy(planned)
    return found.config.distributed.strategy, why


def test_one_process_has_no_choice(planned: Plan, monkeypatch: Any) -> None:
    assert settled(planned, monkeypatch, 1, 0) == ("auto", "")


def test_what_fits_is_not_sharded(planned: Plan, monkeypatch: Any) -> None:
    need = measure(planned).total
    name, why = settled(planned, monkeypatch, 2, need)
    assert name == "ddp"
    assert "sharding what fits is slower" in why
    name, why = settled(planned, monkeypatch, 2, need - 1)
    assert name == "fsdp"
    assert why.startswith("fsdp, since a rank needs about")


def test_what_cannot_be_sharded_is_not(planned: Plan, monkeypatch: Any) -> None:
    monkeypatch.setattr(planned.models.policy, "unpacked", "its states are recurrent")
    name, why = settled(planned, monkeypatch, 2, 0)
    assert name == "ddp"
    assert "one at a time, which cannot be sharded" in why


def test_a_choice_stays(tmp_path: Path, monkeypatch: Any) -> None:
    tree = tiny.run_config(tmp_path) | {"distributed": {"strategy": "fsdp"}}
    assert settled(plan(parse_config(tree, "recipe")), monkeypatch, 2, 10**12) == ("fsdp", "")


def test_parameters_are_offloaded_as_shards_or_not_at_all(tmp_path: Path, monkeypatch: Any) -> None:
    def of(name: str) -> Plan:
        tree = tiny.run_config(tmp_path)
        tree["distributed"] = {"strategy": name, "offload": "parameters"}
        return plan(parse_config(tree, "recipe"))

    auto, hsdp, ddp, alone = (of(name) for name in ("auto", "hsdp", "ddp", "auto"))
    chosen = settled(auto, monkeypatch, 2, 10**12)
    assert chosen == ("fsdp", "fsdp, since distributed.offload is parameters")
    assert settled(hsdp, monkeypatch, 2, 10**12) == ("hsdp", "")
    assert settled(auto, monkeypatch, 1, 10**12) == ("auto", ""), "a CPU has one memory"
    with pytest.raises(ValueError, match=r"distributed.offload: parameters .* several ranks"):
        settled(ddp, monkeypatch, 2, 10**12)
    alone.models.policy.computes_on = torch.device("cuda", 0)
    with pytest.raises(ValueError, match="offload: optimizer is for one process"):
        settled(alone, monkeypatch, 1, 10**12)


def test_ranks_of_one_machine_share_its_memory(monkeypatch: Any) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    whole = strategy.memory_of_rank(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert strategy.memory_of_rank(torch.device("cpu")) < whole / 3
