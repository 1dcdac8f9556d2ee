"""A folder that is not whole ends in one true line, or loads as it was before.

What was changed within valid JSON cannot be told from what its author meant: there the model is the
one that transformers loads from the same folder, and whatever transformers raises is one line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from damage import (
    KINDS,
    damaged,
    save_adapter_folder,
    save_model_folder,
)

from posttrain.common.batch import Sequence, pack
from posttrain.data.render import make_renderer
from posttrain.model.config import ModelConfig
from posttrain.model.folder import generation_stops, resolve_model_path
from posttrain.model.forward import forward
from posttrain.model.load import load_policy, load_tokenizer
from posttrain.model.suited import max_positions

TEXT = "What is 12 plus 5?"
IDS = torch.arange(20) * 7 % 250
CONTENT = ("flip_json", "other_value")
"""Kinds of damage that leave other values in valid JSON."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders that are damaged."""
    place = tmp_path_factory.mktemp("whole")
    model = save_model_folder(place / "model")
    return {
        "model": model,
        "shards": save_model_folder(place / "shards", sharded=True),
        "adapter": save_adapter_folder(place / "adapter", model),
    }


def load(folder: Path) -> tuple[list[int], torch.Tensor, Any]:
    """What a run reads of a folder: the ids of a text, and the log-probs of some ids."""
    name = resolve_model_path(str(folder))
    tokenizer = load_tokenizer(name)
    max_positions(name)
    make_renderer(tokenizer, "plain", None, generation_stops(name))
    config = ModelConfig(name=name, dtype="float32", device="cpu", use_lora=False)
    policy = load_policy(config, name, torch.device("cpu"), seed=0).eval()
    with torch.no_grad():
        logprobs = forward(policy, pack([Sequence(IDS, torch.arange(20) > 0)])).logprobs
    return tokenizer(TEXT)["input_ids"], logprobs, policy


def check(source: Path, target: Path, seed: int) -> str:
    """Damage a copy of a folder and load it; return the message, or nothing if it loaded."""
    what = damaged(source, target, seed)
    try:
        ids, logprobs, _ = load(target)
    except ValueError as error:
        text = str(error)
        assert "\n" not in text, f"{what}: {text}"
        assert len(text) < 700, f"{what}: {text}"
        assert "Traceback" not in text, what
        return text
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    if not what.startswith(CONTENT):
        expected = load(source)
        assert ids == expected[0], what
        assert torch.equal(logprobs, expected[1]), what
    return ""


@pytest.mark.parametrize("kind", [kind.__name__ for kind in KINDS])
@pytest.mark.parametrize("form", ["model", "shards", "adapter"])
def test_damage_is_named_or_harmless(whole, form, kind, tmp_path):
    place = [k.__name__ for k in KINDS].index(kind)
    check(whole[form], tmp_path / "copy", place)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["model", "shards", "adapter"])
def test_five_hundred_damaged_folders(whole, form, tmp_path):
    messages = [check(whole[form], tmp_path / "copy", seed) for seed in range(200)]
    assert sum(map(bool, messages)) > 100
