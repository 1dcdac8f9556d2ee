"""What a plan decides and says before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from posttrain.runs.config import parse_config
from posttrain.runs.describe import describe
from posttrain.runs.plan import plan, with_device_defaults

CONVERSATION = [{"prompt": f"{i} and 1?", "completion": f"{i + 1}"} for i in range(12)]


def described(tmp_path: Path, evaluation: dict[str, Any], method: str = "sft") -> str:
    tree = tiny.run_config(tmp_path, method, eval_steps=3)
    rows = tmp_path / "train.jsonl"
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in CONVERSATION))
    if method == "sft":
        tree["data"] = {"path": str(rows)}
    tree["eval"] = evaluation
    return describe(plan(parse_config(tree, "test")))


def test_rows_that_are_also_trained_on_are_counted(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    new = {"prompt": "50 and 1?", "completion": "51"}
    own.write_text("".join(f"{json.dumps(row)}\n" for row in [*CONVERSATION[:3], new]))
    text = described(tmp_path, {"data": {"path": str(own)}})
    assert f"note: 3 of the 4 evaluation rows ({own} (train)) are also trained on" in text


def test_the_very_file_that_is_trained_on_is_noted(tmp_path: Path) -> None:
    text = described(tmp_path, {"data": {"path": str(tmp_path / "train.jsonl"), "split": "train"}})
    assert (
        f"12 of the 12 evaluation rows ({tmp_path / 'train.jsonl'} (train)) are also trained on"
        in text
    )


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_rows_held_out_are_not(method: str, tmp_path: Path) -> None:
    assert "also trained on" not in described(tmp_path, {"split": 0.3}, method)


def test_prompts_of_an_online_method_are_counted_too(tmp_path: Path) -> None:
    data = {"name": "word_problems", "split": "train", "options": {"num_rows": 40}}
    text = described(tmp_path, {"data": data, "max_samples": 7}, "grpo")
    assert "note: 7 of the 7 evaluation rows" in text


@pytest.mark.parametrize(
    ("device", "own", "expected"), [("cpu", None, 768), ("cuda", None, 8192), ("cuda", 500, 500)]
)
def test_the_token_budget_follows_the_device_of_the_run(
    device: str, own: int | None, expected: int, tmp_path: Path
) -> None:
    tree = tiny.run_config(tmp_path, **({} if own is None else {"micro_batch_tokens": own}))
    config = with_device_defaults(parse_config(tree, "test"), torch.device(device))
    assert config.trainer.micro_batch_tokens == config.trainer.token_budget == expected
