"""A real pre-trained model (260k parameters) and real data through the ordinary recipes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import ROOT, shared

from posttrain.cli.main import main
from posttrain.runs.config import load_config
from posttrain.runs.train import train


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def output(monkeypatch, capsys, command: list) -> str:
    """What the program prints; it ends without an error code."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["posttrain", *map(str, command)])
    main()
    return capsys.readouterr().out


@pytest.mark.slow
def test_continued_pretraining_on_a_text_lowers_its_loss(tmp_path):
    overrides = [
        f"model.name={shared('models/stories260k')}",
        f"data.path={shared('data/text/tinyshakespeare.txt')}",
        f"trainer.output_dir={tmp_path}",
        "trainer.max_steps=30",
    ]
    lines = metrics(train(load_config(ROOT / "recipes/pretrain/text.yaml", overrides)))
    first = sum(x["loss"] for x in lines[:3]) / 3
    last = sum(x["loss"] for x in lines[-3:]) / 3
    assert last < 0.85 * first


@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sft_on_gsm8k_and_sampling(lora, tmp_path, capsys, monkeypatch):
    overrides = [
        f"model.name={shared('models/stories260k')}",
        f"data.path={shared('data/gsm8k')}",
        "data.max_samples=400",
        f"trainer.output_dir={tmp_path}",
        "trainer.num_epochs=null",
        "trainer.max_steps=8",
        "trainer.batch_size=16",
        "trainer.learning_rate=3e-3",
        "trainer.eval_steps=8",
        "length.max_length=384",
        "eval.max_samples=4",
        "eval.max_new_tokens=40",
        f"model.use_lora={lora}",
    ]
    run_dir = train(load_config(ROOT / "recipes/sft/gsm8k.yaml", overrides))
    lines = metrics(run_dir)
    assert lines[7]["loss"] < lines[0]["loss"]
    assert lines[-1]["eval_loss"] < lines[0]["loss"]
    for command in (
        ["generate", run_dir, "Once upon a time", "--max-new-tokens", "12"],
        [
            "eval",
            run_dir,
            "--tasks",
            f"gsm8k={shared('data/gsm8k')}",
            "--max-samples",
            "3",
            "--max-new-tokens",
            "20",
        ],
    ):
        assert output(monkeypatch, capsys, command).strip()


def test_the_pretrained_model_writes_english(capsys, monkeypatch):
    """Greedy words of the story model as it is: the tokenizer, BOS and weights fit together."""
    command = [
        "generate",
        shared("models/stories260k"),
        "Once upon a time",
        "--temperature",
        "0",
        "--max-new-tokens",
        "30",
    ]
    words = output(monkeypatch, capsys, command).split()
    assert {"was", "a", "little"} & set(words)
    assert len(words) > 10


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "kto", "orpo", "reward_model"])
def test_preferences_of_real_dialogues(method, tmp_path):
    overrides = [
        f"model.name={shared('models/stories260k')}",
        f"data.path={shared('data/hh_rlhf')}",
        f"trainer.output_dir={tmp_path}",
        "trainer.num_epochs=null",
        "trainer.max_steps=3",
        "trainer.eval_steps=3",
        "data.max_samples=64",
        "eval.max_samples=16",
    ]
    lines = metrics(train(load_config(ROOT / f"recipes/{method}/hh_rlhf_cpu.yaml", overrides)))
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert lines[-1]["eval_rewards/margins"] != 0
