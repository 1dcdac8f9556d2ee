"""Adapters with a fault of their own, which PEFT would read without a word: named in one line."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from command import command, recipe
from damage import save_adapter_folder, save_model_folder
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.common.batch import Sequence, pack
from posttrain.model.config import ModelConfig
from posttrain.model.folder import base_model, not_found
from posttrain.model.forward import forward
from posttrain.model.load import load_policy
from posttrain.model.loaded import start_hash, weights_hash

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model_folder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    return save_adapter_folder(base.parent / "adapter", base)


def load(folder: Path) -> Any:
    config = ModelConfig(name=str(folder), dtype="float32", use_lora=False)
    return load_policy(config, str(folder), tiny.CPU, 0)


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError, match=r".+") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base at random at every loading"),
        ({"init_lora_weights": "corda"}, "PEFT cannot build what adapter_config.json says: "),
        ({"init_lora_weights": "zorp"}, "Unknown initialization init_lora_weights='zorp'"),
        ({"bias": "zorp"}, "PEFT cannot build what adapter_config.json says: "),
        ({"target_modules": ["query"]}, "the base has not the layers that it adapts (query)"),
        ({"base_model_name_or_path": ""}, "does not name its base model"),
        ({"base_model_name_or_path": "a/b", "revision": "v2"}, "is an adapter of a/b at the rev"),
    ],
)
def test_settings(adapter: Path, tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "changed"))
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    assert expected in refusal(folder)


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key.replace(old, new): x for key, x in tensors.items()}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (renamed(".weight", ".default.weight"), "got base_model.model.model.layers.0.self_attn.q"),
        (renamed("base_model.model.", ""), "expected base_model.model.model.layers.0.self_attn.q"),
        (lambda t: dict(list(t.items())[1:]), "lacks weights of the model, which would be random"),
        (lambda t: {k: x / 0 for k, x in t.items()}, "holds numbers that are not finite, in model"),
    ],
)
def test_weights(
    adapter: Path, tmp_path: Path, change: Callable[[Tensors], Tensors], expected: str
) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "changed"))
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    assert expected in refusal(folder)


def test_a_model_whose_weights_are_not_finite(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "nan"))
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, file, {"format": "pt"})
    assert "gives log-probs that are not finite: its weights hold such numbers" in refusal(folder)


def test_rows_of_tokens_in_a_head_that_is_the_embedding(base: Path, tmp_path: Path) -> None:
    """PEFT wraps the tied head too: the changed rows count at the input and at the output."""
    import peft

    tied = tmp_path / "tied"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tied)
    AutoTokenizer.from_pretrained(base).save_pretrained(tied)
    folder = save_adapter_folder(tmp_path / "adapter", tied, trainable_token_indices=[5, 6, 9])
    ids = torch.arange(20) % 11
    policy = load(folder).eval()
    ours = forward(policy, pack([Sequence(ids, torch.arange(20) > 0)])).logprobs[1:]
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tied), folder)
    logits = model.eval()(input_ids=ids[None]).logits[0, :-1].float()
    theirs = logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    assert torch.allclose(ours, theirs, atol=1e-5)
    ours.sum().backward()
    (delta,) = {p for n, p in policy.named_parameters() if "trainable_tokens_delta" in n}
    assert delta.grad is not None
    assert delta.grad.abs().sum() > 0


def test_weights_beside_an_adapter_are_said_to_be_unread(
    base: Path, adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "both"))
    for file in adapter.iterdir():
        shutil.copy(file, folder)
    with caplog.at_level(logging.WARNING):
        load(folder)
    assert f"read as an adapter of {base_model(str(folder))}, not the weights" in caplog.text


@pytest.mark.parametrize("adapter", [{"type": "lora", "r": 2}, {"type": "loreft", "rank": 2}])
def test_a_base_that_has_changed_since_the_run_is_reported(
    base: Path, tmp_path: Path, adapter: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever trained the base further in its place has another model under the old name."""
    own = Path(shutil.copytree(base, tmp_path / "own"))
    rows = [{"prompt": "the cat", "completion": "sat"}] * 4
    trainer = {"type": "sft", "max_steps": 1, "batch_size": 4, "output_dir": str(tmp_path / "out")}
    model = {"name": str(own), "adapter": adapter}
    assert command("train", recipe(tmp_path, rows, model=model, trainer=trainer)) == 0
    checkpoint = next((tmp_path / "out").glob("*/checkpoint-*"))
    for dtype in ("float32", "bfloat16"):
        config = ModelConfig(name=str(checkpoint), dtype=dtype, use_lora=False)
        load_policy(config, str(checkpoint), tiny.CPU, 0)
    assert "other weights" not in caplog.text
    weights = load_file(own / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] *= 1.5
    save_file(weights, own / "model.safetensors", {"format": "pt"})
    with caplog.at_level(logging.WARNING):
        load(checkpoint)
    assert f"{checkpoint} was trained on other weights than {own} now has" in caplog.text


def test_a_folder_of_adapters_is_answered_with_one(adapter: Path) -> None:
    assert not_found(str(adapter.parent)).endswith(("did you mean", "/adapter?"))


def test_what_a_run_starts_from_is_known_by_its_weights(base: Path, adapter: Path) -> None:
    """By those of the base and of the adapter, whatever the dtype, and not by their names."""
    first, again = load(base).causal_lm(), load(base).causal_lm()
    assert start_hash(first) == start_hash(again) != ""
    other = load(adapter).causal_lm()
    assert start_hash(other) not in ("", start_hash(first))
    assert weights_hash(first) == weights_hash(again.to(torch.bfloat16))
    with torch.no_grad():
        again.lm_head.weight.mul_(1.5)
    assert weights_hash(first) != weights_hash(again)
