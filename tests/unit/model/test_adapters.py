"""Adapters that others made: as PEFT computes them, saved and resumed bit for bit, or refused."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from damage import save_adapter_folder, save_model_folder
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from posttrain.common.batch import Sequence, pack
from posttrain.model.adapters.saved import check_plain, with_adapter
from posttrain.model.config import ModelConfig
from posttrain.model.forward import forward
from posttrain.model.load import load_policy, load_tokenizer
from posttrain.model.models import Models
from posttrain.model.save import gather_weights, restore_weights, save_model
from posttrain.model.suited import max_positions
from posttrain.model.vocabulary import check_ids, num_rows, size_notes

IDS = torch.arange(24) * 11 % 250
LORA: dict[str, dict[str, Any]] = {
    "plain": {},
    "all linear": {"target_modules": "all-linear"},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 9}},
    "some layers": {"layers_to_transform": [1]},
    "on the head": {"target_modules": ["q_proj", "lm_head"]},
    "on the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head and embedding saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "head saved": {"modules_to_save": ["lm_head"]},
    "norms saved": {"modules_to_save": ["input_layernorm"]},
    "rows of tokens": {"trainable_token_indices": {"embed_tokens": [5, 6]}},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model_folder(tmp_path_factory.mktemp("base") / "model")


def load(folder: Path, **keys: Any) -> Any:
    config = tiny.model_config(str(folder), dtype="float32", device="cpu", **keys)
    tokenizer = load_tokenizer(str(folder))
    return load_policy(config, str(folder), tiny.CPU, seed=0, tokenizer=tokenizer)


@torch.no_grad()
def logprobs(policy: Any) -> torch.Tensor:
    policy.eval()
    return forward(policy, pack([Sequence(IDS, torch.arange(len(IDS)) > 0)])).logprobs[1:]


@torch.no_grad()
def peft_logprobs(base: Path, folder: Path, rows: int | None = None) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(model, folder).eval()
    logits = model(input_ids=IDS[None]).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, IDS[1:, None])[:, 0]


def trained(policy: Any, folder: Path, source: Path) -> Path:
    """Move every trained tensor as a step would, and save the policy."""
    policy.train()
    forward(policy, pack([Sequence(IDS, torch.arange(len(IDS)) > 0)])).logprobs.sum().backward()
    assert [n for n, p in policy.named_parameters() if p.requires_grad and p.grad is None] == []
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    folder.mkdir()
    models = Models(policy, load_tokenizer(str(source)), [3])
    save_model(folder, models, gather_weights(models))
    return folder


@pytest.mark.parametrize("kind", [*LORA, "ia3"])
def test_an_adapter_is_what_peft_computes_and_is_saved_whole(base, kind, tmp_path):
    folder = tmp_path / "adapter"
    if kind == "ia3":
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = peft.get_peft_model(model, peft.IA3Config(task_type="CAUSAL_LM"))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(folder)
    else:
        save_adapter_folder(folder, base, **LORA[kind])
    policy = load(folder)
    assert torch.allclose(logprobs(policy), peft_logprobs(base, folder), atol=1e-5)
    saved = trained(policy, tmp_path / "saved", base)
    expected = logprobs(policy)
    assert torch.equal(logprobs(load(saved)), expected)
    assert torch.allclose(peft_logprobs(base, saved), expected, atol=1e-5)
    resumed = load(folder)
    restore_weights(Models(resumed, None, [3]), saved)
    assert torch.equal(logprobs(resumed), expected)


@pytest.mark.parametrize("saved", [["embed_tokens", "lm_head"], None])
def test_an_adapter_with_more_tokens_than_its_base(base, saved, tmp_path):
    """PEFT wants the base resized by hand; the file says to what."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    rows = num_rows(model) + 6
    model.resize_token_embeddings(rows)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved)
    model = peft.get_peft_model(model, config)
    folder = tmp_path / "adapter"
    model.save_pretrained(folder, save_embedding_layers=True)
    policy = load(folder)
    assert num_rows(policy.causal_lm()) == rows
    assert torch.allclose(logprobs(policy), peft_logprobs(base, folder, rows), atol=1e-5)
    again = trained(policy, tmp_path / "saved", base)
    assert torch.equal(logprobs(load(again)), logprobs(policy))


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "PROMPT_TUNING"),
        (peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "PREFIX_TUNING"),
        (peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "P_TUNING"),
        (peft.AdaLoraConfig(target_modules=["q_proj"], total_step=9), "ADALORA"),
        (peft.PveraConfig(target_modules=["q_proj"], r=2), "PVERA"),
    ],
)
def test_other_kinds_are_refused_by_name(base, config, kind, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"is an adapter of the kind {kind}, which is not read"):
        load(tmp_path)


def changed(folder: Path, **keys: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        (
            {"lora_turbo": True, "peft_version": "9.9"},
            "sets lora_turbo, which PEFT .* from PEFT 9.9",
        ),
        (
            {"alora_invocation_tokens": [1, 2]},
            r"is an activated LoRA, .* \(alora_invocation_tokens",
        ),
        ({"target_modules": ["query_key_value"]}, r"the base has not the layers .*query_key_value"),
        (
            {"r": 3},
            r"does not fit its base .*lora_A.weight is \[2, 32\] in the adapter and \[3, 32",
        ),
        (
            {"base_model_name_or_path": "models/gone"},
            "is an adapter of models/gone, which is not here",
        ),
        ({"base_model_name_or_path": None}, "does not name its base model"),
        ({"peft_type": "NEW"}, "is an adapter of the kind NEW, which is not read"),
    ],
)
def test_what_does_not_fit_is_named(base, keys, problem, tmp_path):
    folder = save_adapter_folder(tmp_path / "adapter", base)
    changed(folder, **keys)
    with pytest.raises(ValueError, match=problem) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    if "base" in problem and "kind" not in problem and keys.get("base_model_name_or_path"):
        with pytest.raises(ValueError, match=problem):
            max_positions(str(folder))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hidden_size": 64}, "does not fit its base"),
        (
            {"num_hidden_layers": 1},
            "holds weights that its base .* has no place for: model.layers.1",
        ),
        ({"num_hidden_layers": 3}, "lacks weights of the model, which would be random: .*layers.2"),
    ],
)
def test_an_adapter_of_another_base(base, changes, problem, tmp_path):
    adapter = save_adapter_folder(tmp_path / "adapter", base)
    other = tmp_path / "other"
    shutil.copytree(base, other)
    config = AutoModelForCausalLM.from_pretrained(base).config
    for key, value in changes.items():
        setattr(config, key, value)
    if "num_hidden_layers" in changes:
        config.layer_types = None
    AutoModelForCausalLM.from_config(config).save_pretrained(other)
    changed(adapter, base_model_name_or_path=str(other))
    with pytest.raises(ValueError, match=problem):
        load(adapter)


def test_dropout_on_the_head_is_refused(base, tmp_path):
    keys = {"target_modules": ["lm_head"], "lora_dropout": 0.5}
    folder = save_adapter_folder(tmp_path / "adapter", base, **keys)
    with pytest.raises(ValueError, match=r"change of the output head .* lm_head in target_modules"):
        load(folder)


def test_the_recipe_does_not_contradict_an_adapter(base, tmp_path):
    folder = str(save_adapter_folder(tmp_path / "adapter", base))

    def config(**lora: Any) -> ModelConfig:
        keys = {"lora": lora} if lora else {}
        return ModelConfig(name=folder, use_lora=True, **keys)

    for key, value in {"r": 32, "alpha": 64, "dropout": 0.1, "target_modules": ["up_proj"]}.items():
        with pytest.raises(ValueError, match=f"model.adapter.{key} is .*, but the adapter .* has"):
            with_adapter(config(**{key: value}), folder)
    plain = with_adapter(config(), folder)
    assert (plain.adapter.r, plain.adapter.alpha, plain.adapter.dropout) == (2, 4, 0.0)
    assert plain.adapter.target_modules == ["q_proj", "v_proj"]
    same = {"r": 2, "alpha": 4, "target_modules": ["v_proj", "q_proj"]}
    assert with_adapter(config(**same), folder).adapter.r == 2
    saved = config(**plain.adapter.model_dump())  # a run's resolved config can be run again
    assert with_adapter(saved, folder).adapter == plain.adapter


def test_what_a_server_cannot_load_is_refused(base, tmp_path):
    plain = save_adapter_folder(tmp_path / "plain", base)
    saved = save_adapter_folder(tmp_path / "saved", base, modules_to_save=["lm_head"])
    config = ModelConfig(name="m", use_lora=True)
    check_plain(config, str(base))
    check_plain(config, str(plain))
    with pytest.raises(ValueError, match="not the adapter's modules_to_save: use rollout"):
        check_plain(config, str(saved))
    resized = config.model_copy(update={"resize_embeddings": True})
    with pytest.raises(ValueError, match=r"not model\.resize_embeddings"):
        check_plain(resized, str(base))


def test_no_weight_of_an_adapter_is_left_out(base, tmp_path):
    """What PEFT reads beside the adapter's own tensors is read, and saved again."""
    folder = save_adapter_folder(tmp_path / "adapter", base)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    norm = {"base_model.model.model.norm.weight": torch.full((32,), 3.0)}
    save_file(tensors | norm, file)
    policy = load(folder)
    assert torch.allclose(logprobs(policy), peft_logprobs(base, folder), atol=1e-5)
    saved = trained(policy, tmp_path / "saved", base)
    assert torch.equal(logprobs(load(saved)), logprobs(policy))
    save_file(tensors | {"base_model.model.model.zorp.weight": torch.ones(3)}, file)
    with pytest.raises(ValueError, match=r"has no place for: model\.zorp\.weight"):
        load(folder)


def with_more_tokens(base: Path, folder: Path, count: int = 5) -> Path:
    shutil.copytree(base, folder)
    tokenizer = load_tokenizer(str(base))
    tokenizer.add_tokens([f"<extra_{i}>" for i in range(count)], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("use_lora", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_resized_embeddings_are_trained_and_saved(base, tied, use_lora, tmp_path):
    source = tmp_path / "source"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    shutil.copytree(base, source)
    if tied:
        model.config.tie_word_embeddings = True
        AutoModelForCausalLM.from_config(model.config).save_pretrained(source)
    folder = with_more_tokens(source, tmp_path / "more")
    tokenizer = load_tokenizer(str(folder))
    keys = {"resize_embeddings": True, "resize_multiple": 64, "use_lora": use_lora}
    policy = load(folder, **keys)
    rows = num_rows(policy.causal_lm())
    assert rows % 64 == 0
    assert rows >= len(tokenizer) > num_rows(model)
    assert torch.equal(logprobs(policy), logprobs(load(folder, **keys)))  # drawn with the seed
    saved = trained(policy, tmp_path / "saved", folder)
    expected = logprobs(policy)
    assert torch.equal(logprobs(load(saved)), expected)
    resumed = load(folder, **keys)
    restore_weights(Models(resumed, None, [3]), saved)
    assert torch.equal(logprobs(resumed), expected)
    if use_lora:
        assert torch.allclose(peft_logprobs(folder, saved, rows), expected, atol=1e-5)


def test_an_adapter_that_would_not_save_new_rows_is_not_resized(base, tmp_path):
    adapter = save_adapter_folder(tmp_path / "adapter", base)
    with_more_tokens(base, tmp_path / "more")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "more" / file, adapter)
    load(adapter)
    with pytest.raises(
        ValueError, match=r"model\.resize_embeddings: the adapter .* would not save"
    ):
        load(adapter, resize_embeddings=True)


def test_tokens_without_rows_are_named(base, tmp_path):
    folder = with_more_tokens(base, tmp_path / "more")
    tokenizer, model = load_tokenizer(str(folder)), load(folder).causal_lm()
    rows = num_rows(model)
    check_ids(model, rows - 1, tokenizer)
    with pytest.raises(
        ValueError, match=rf"more tokens than the model has rows, {rows}: the token"
    ):
        check_ids(model, rows, tokenizer)
    (note,) = size_notes(model, tokenizer)
    assert f"{len(tokenizer)} tokens and the model {rows} rows" in note
    model.resize_token_embeddings(len(tokenizer) + 3)
    assert "the other rows belong to no token" in size_notes(model, tokenizer)[0]
    model.resize_token_embeddings(len(tokenizer))
    assert size_notes(model, tokenizer) == []
