"""`posttrain plan` as a user calls it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from command import Capture, recipe

from posttrain.cli.main import main
from posttrain.runs.config import parse_config
from posttrain.runs.train import train

GRPO: dict[str, Any] = {
    "trainer.type": "grpo",
    "rollout.group_size": 2,
    "rollout.max_new_tokens": 16,
    "reward.type": "exact_match",
}


def plan(monkeypatch: pytest.MonkeyPatch, *words: Any) -> int:
    monkeypatch.setattr("sys.argv", ["posttrain", "plan", *map(str, words)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_strategies_are_compared_and_one_is_recommended(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--gpus", 2, "--gpu-memory", 1, "trainer.batch_size=8", "model.scratch.num_kv_heads=2"]
    assert plan(monkeypatch, recipe(tmp_path), *words) == 0
    out = capsys.readouterr().out
    for name in ("ddp", "fsdp", "tensor 2 x ddp", "sequence 2 x fsdp"):
        assert re.search(rf"^{name} +[\d.]+ KiB +fits", out, re.MULTILINE), out
    assert "\ntake ddp: it fits, and " in out
    assert not re.search(r"(?<![\d.,])0(\.0+)?(M| [GM])", out), (
        "every number is in a unit that shows it"
    )
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_is_told_which_strategy_is_being_counted(
    terminal: bool, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    words = ["--gpus", 2, "distributed.sequence_parallel=2"]
    assert plan(monkeypatch, recipe(tmp_path), *words) == 0
    names = ["sequence 2 x ddp", "sequence 2 x fsdp"]
    said = [f"counting {number} of 2: {name}" for number, name in enumerate(names, 1)]
    out, err = capsys.readouterr()
    assert err.splitlines() == (said if terminal else [])
    assert "counting" not in out


@pytest.mark.parametrize(
    "words",
    [
        ["--server-rate", 80],
        ["--server-slots", 64],
        ["--step-time", 1],
        ["--completion-tokens", 10],
        ["--completion-tokens", 10, "--server-rate", 80],
    ],
)
def test_options_about_servers_need_rollouts(
    words: list[Any], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan(monkeypatch, recipe(tmp_path), *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    name = "--server-rate" if "--server-rate" in words else words[0]
    assert line == f"error: {name}: is about rollout servers, and sft has no rollouts"


def test_options_about_servers_need_their_rate(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [f"{key}={value}" for key, value in GRPO.items()]
    assert plan(monkeypatch, recipe(tmp_path), *changes, "--step-time", 2) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --step-time: is about rollout servers: give --server-rate")


@pytest.mark.slow
def test_servers_follow_from_measured_rates(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [f"{key}={value}" for key, value in GRPO.items()]
    words = ["--server-rate", 80, "--server-slots", 8, "--step-time", 1, "--completion-tokens", 10]
    assert (
        plan(
            monkeypatch,
            recipe(tmp_path),
            *changes,
            "rollout.one_step_off=true",
            "trainer.sampler_correction=token",
            *words,
        )
        == 0
    )
    out = capsys.readouterr().out
    # 8 completions of 10 tokens, 8 at once at 10 tokens/s each: a second, as long as a step
    assert "  1 keep the trainers busy for 100% of the time" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus", 0], "--gpus"),
        (["--completion-tokens", "many"], "--completion-tokens: 'many' is no number of tokens"),
        (["--gpus", 3, "distributed.tensor_parallel=3"], "3 ranks do not divide the 2 attention"),
        (["distributed.tensor_parallel=2"], "2 does not divide the 1 rank(s)"),
        (
            ["--gpu-memory", 0.001, "model.scratch.hidden_size=256"],
            "no strategy fits: the smallest, ddp, needs",
        ),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[Any], said: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan(monkeypatch, recipe(tmp_path), *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_model_without_config_is_named(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    words = ["model.scratch=null", f"model.name={tmp_path / 'model'}"]
    assert plan(monkeypatch, recipe(tmp_path), *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.json" in line or "no model" in line


def test_an_adapter_that_names_each_of_its_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tiny.run_config(tmp_path / "base", "sft", max_steps=1)
    base = train(parse_config(tree, "test"))
    adapter = {"type": "lora", "target_modules": ["model.layers.1.mlp.up_proj"]}
    tree["model"] = {"name": str(base / "checkpoint-1"), "adapter": adapter}
    adapted = train(parse_config(tree, "test"), tmp_path / "adapted")
    words = ["model.scratch=null", f"model.name={adapted / 'checkpoint-1'}"]
    assert plan(monkeypatch, recipe(tmp_path), *words) == 0


def test_config_json_alone_is_enough(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 300}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = shape | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    words = ["model.scratch=null", f"model.name={tmp_path / 'model'}", "model.adapter=none"]
    assert plan(monkeypatch, recipe(tmp_path), *words) == 0
    assert "all of the greatest length: there is no tokenizer" in capsys.readouterr().out
