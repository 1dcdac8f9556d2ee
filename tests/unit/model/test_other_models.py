"""Models that are not what a recipe expects, and what their config.json says beside the shape."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import architectures
import pytest
import tiny
import torch
import transformers
from architectures import ARCHITECTURES, causal_lm, models_of, own_logprobs, policy
from damage import save_model_folder
from safetensors.torch import load_file

from posttrain.common.batch import Sequence, pack
from posttrain.model import save, trial
from posttrain.model.config import ModelConfig
from posttrain.model.forward import forward
from posttrain.model.load import load_policy, load_tokenizer
from posttrain.model.suited import UNLIMITED, max_positions, read_config
from posttrain.model.trial import check_saving
from posttrain.rollout.native import alone
from posttrain.runs.network import check_rotation, network_notes

DOCS = Path(__file__).resolve().parents[3] / "docs"
TEXT: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48}
TEXT |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
TEXT |= {"max_position_embeddings": 77, "bos_token_id": None, "eos_token_id": 3}
SEEN: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
SEEN |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
GEMMA = {"text_config": TEXT | {"sliding_window": 16}, "vision_config": SEEN}
GEMMA |= {"mm_tokens_per_image": 4, "image_token_index": 90, "boi_token_index": 91}
GEMMA |= {"eoi_token_index": 92}


def load(folder: Path, **keys: Any) -> Any:
    config = tiny.model_config(str(folder), **keys)
    return load_policy(config, str(folder), tiny.CPU, seed=0)


def change(folder: Path, **keys: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | keys))


@pytest.mark.parametrize(
    ("kind", "keys", "reason"),
    [
        ("t5", {}, "is an encoder-decoder"),
        ("bart", {}, "is an encoder-decoder"),
        ("whisper", {}, "is an encoder-decoder"),
        ("t5gemma", {}, "is an encoder-decoder"),
        ("gemma3", GEMMA, "is a model of more than text"),
        ("llava", {}, "is a model of more than text"),
        ("qwen2_5_vl", {}, "is a model of more than text"),
        ("clip", {}, "is a model of more than text"),
        ("vit", {}, "is no language model that writes text"),
    ],
)
def test_other_kinds_of_models_are_refused_by_name(kind, keys, reason, tmp_path):
    config = transformers.AutoConfig.for_model(kind, **keys)
    config.architectures = ["SomeModel"]
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"^model\.name: \S+ {reason} \(SomeModel\)[^\n]*$"):
        read_config(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "keys", "limit"),
    [
        ("mpt", {"max_seq_len": 64}, 64),
        ("gpt2", {"n_positions": 32}, 32),
        ("llama4", {"text_config": TEXT}, 77),
        ("mamba", {}, UNLIMITED),
    ],
)
def test_the_maximum_length_is_found_under_each_of_its_names(kind, keys, limit, tmp_path):
    transformers.AutoConfig.for_model(kind, **keys).save_pretrained(tmp_path)
    assert max_positions(str(tmp_path)) == limit


def test_the_text_part_of_a_larger_model_is_saved_as_the_page_says(tmp_path, monkeypatch):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("gemma3", **GEMMA)
    whole = transformers.Gemma3ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path / "whole")
    page = (DOCS / "architectures.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers, "AutoTokenizer", SimpleNamespace(from_pretrained=SAVES_NONE))
    exec(snippet, {})
    part = load(tmp_path / "text")
    row = Sequence(torch.arange(4, 34), torch.arange(30) >= 10)
    wanted = own_logprobs("", lambda ids, use_cache: whole(input_ids=ids), row)
    torch.testing.assert_close(forward(part, pack([row])).logprobs, wanted, rtol=0, atol=1e-5)


def SAVES_NONE(folder: str) -> Any:
    return SimpleNamespace(save_pretrained=lambda folder: None)


@pytest.mark.parametrize("name", ["PhiMoE", "Mistral", "gpt-oss", "Llama 4 (text)"])
def test_windows_of_any_length_are_probed_at_their_edge(name, monkeypatch):
    """transformers' PhiMoE masks by its window and does not hand it to attention."""
    kind, keys = ARCHITECTURES[name]
    key = "attention_chunk_size" if "Llama" in name else "sliding_window"
    monkeypatch.setitem(ARCHITECTURES, name, (kind, keys | {key: 100}))
    model, theirs = policy(name).eval(), causal_lm(name)
    assert (model.unpacked is None) == (name != "PhiMoE")
    assert getattr(model.causal_lm().config, key) == 100
    layer = model.backbone().layers[0].self_attn
    assert getattr(layer, "sliding_window", 100) in (100, None)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for prompt, length in ((99, 103), (99, 100), (100, 104), (101, 102), (1, 99), (80, 150)):
        ids = torch.randint(4, 97, (length,), generator=generator)
        rows.append(Sequence(ids, torch.arange(length) >= prompt))
    with torch.no_grad():
        wanted = torch.cat([own_logprobs(name, theirs, row) for row in rows])
        got = forward(model, pack(rows)).logprobs
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-4)


def test_a_rotation_of_one_kind_of_layer_forgets_longer_rows(monkeypatch):
    full = {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 1e4}
    ropes = {"full_attention": full, "sliding_attention": {"rope_type": "default"}}
    ropes["sliding_attention"]["rope_theta"] = 1e4
    keys = ARCHITECTURES["Gemma 3"][1] | {"max_position_embeddings": 64, "rope_parameters": ropes}
    keys |= {"layer_types": ["full_attention", "sliding_attention"]}
    monkeypatch.setitem(ARCHITECTURES, "Gemma 3", ("gemma3_text", keys))
    model = policy("Gemma 3").eval()
    long, short = (Sequence(torch.arange(4, 4 + n), torch.arange(n) >= 5) for n in (90, 64))
    with torch.no_grad():
        alone = forward(model, pack([short])).logprobs
        after = forward(model, pack([long, short])).logprobs[90:]
        wanted = own_logprobs("", causal_lm("Gemma 3"), short)
    torch.testing.assert_close(alone, wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(after, wanted, rtol=0, atol=1e-4)


def test_a_config_that_transformers_cannot_run_is_one_line(monkeypatch):
    kind, keys = ARCHITECTURES["Cohere"]
    monkeypatch.setitem(ARCHITECTURES, "Cohere", (kind, keys | {"logit_scale": None}))
    with pytest.raises(ValueError, match=r"^model\.name: transformers cannot run \w+ as config"):
        policy("Cohere")


@pytest.mark.parametrize("name", ["RecurrentGemma", pytest.param("xLSTM", marks=pytest.mark.slow)])
def test_soft_caps_have_several_names(name):
    model = policy(name)
    *_, cap, _ = model.output_head()
    assert cap == 30.0
    assert architectures.loss_difference(name, model)[0] < 2e-4


def test_parameters_that_are_never_trained_are_saved(tmp_path):
    models = models_of(policy("HRM-Text"))
    frozen = [n for n, p in models.policy.named_parameters() if not p.requires_grad]
    assert frozen
    check_saving(models)
    save.save_model(tmp_path, models, save.gather_weights(models))
    assert {n.removeprefix("model.") for n in frozen} <= set(load_file(tmp_path / WEIGHTS))


WEIGHTS = "model.safetensors"


@pytest.mark.parametrize("name", ["GPT-2", "Mixtral", "DeepSeek-V3", "Qwen2", "HRM-Text"])
def test_saving_of_large_models_is_tried_without_their_matrices(name, monkeypatch):
    monkeypatch.setattr(trial, "WHOLE", 0)
    monkeypatch.setattr(trial, "SMALL", 100)
    models = models_of(policy(name))
    check_saving(models)
    plain = save.saved_tensors
    lost = list(plain(models))[3]
    monkeypatch.setattr(
        trial, "saved_tensors", lambda m: {n: x for n, x in plain(m).items() if n != lost}
    )
    with pytest.raises(ValueError, match=f"would lack {re.escape(lost.removeprefix('model.'))}"):
        check_saving(models)


def test_an_adapter_that_peft_does_not_read_back_is_refused(monkeypatch):
    """transformers renames Laguna's shared experts twice, and PEFT drops what it renames."""
    keys = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    keys |= {"head_dim": 8, "shared_expert_intermediate_size": 24, "sliding_window": 16}
    monkeypatch.setitem(ARCHITECTURES, "Laguna", ("laguna", keys))
    models = models_of(policy("Laguna", use_lora=True))
    with pytest.raises(ValueError, match=r"does not read model\.layers\.1\.mlp\.shared_experts"):
        check_saving(models)
    own = {"lora": {"target_modules": ["q_proj", "v_proj"]}}
    check_saving(models_of(policy("Laguna", use_lora=True, **own)))


def test_lora_leaves_out_what_the_kernels_of_state_space_layers_read():
    model = policy("Mamba", use_lora=True)
    adapted = {n.split(".lora_")[0].rpartition(".")[2] for n in models_of(model).trainable()}
    assert adapted == {"in_proj", "x_proj"}
    (note,) = [n for n in network_notes(model, config(use_lora=True)) if "adapter leaves out" in n]
    assert "dt_proj and out_proj of the state-space layers of MambaForCausalLM" in note


def test_a_loss_of_the_router_that_is_not_added_is_named(monkeypatch):
    kind, keys = ARCHITECTURES["Mixtral"]
    assert not any("router" in note for note in network_notes(policy("Mixtral"), config()))
    changed = keys | {"output_router_logits": True, "router_aux_loss_coef": 0.02}
    monkeypatch.setitem(ARCHITECTURES, "Mixtral", (kind, changed))
    (note,) = [n for n in network_notes(policy("Mixtral"), config()) if "router" in n]
    assert "(router_aux_loss_coef 0.02), which is not added here" in note


def config(use_lora: bool = False) -> Any:
    """The keys that the notes read."""
    trainer = SimpleNamespace(type="sft", writes_text=True)
    return SimpleNamespace(
        trainer=trainer,
        model=ModelConfig(name="tiny", use_lora=use_lora),
        algorithm=SimpleNamespace(online=True),
        rollout=SimpleNamespace(max_new_tokens=20),
    )


@pytest.mark.parametrize(
    ("name", "lengths", "crossing"),
    [
        ("Phi-3 (longrope)", (20, 28), 0),
        ("Phi-3 (longrope)", (20, 29, 30), 2),
        ("Phi-3 (longrope)", (49, 60), 0),  # in the second rotation from the start
        ("Llama (dynamic rope)", (43,), 0),
        ("Llama (dynamic rope)", (44, 90), 2),  # which changes with every token
        ("Llama 3", (150,), 0),
    ],
)
def test_rl_does_not_sample_across_a_change_of_the_rotation(name, lengths, crossing):
    prompts: Any = [SimpleNamespace(input_ids=list(range(n))) for n in lengths]
    if crossing == 0:
        check_rotation(policy(name), config(), prompts)
        return
    words = rf"{crossing} of {len(lengths)} prompts have completions that could cross"
    with pytest.raises(ValueError, match=words):
        check_rotation(policy(name), config(), prompts)


@pytest.mark.parametrize("attention", ["eager", "flash_attention_2"])
def test_the_attention_that_a_config_records_does_not_matter(attention, tmp_path):
    folder = save_model_folder(tmp_path / "model")
    change(folder, _attn_implementation=attention, attn_implementation=attention)
    check_saving(models_of(load(folder)))


def test_a_fault_of_the_config_is_not_taken_for_the_tokenizers(tmp_path):
    folder = save_model_folder(tmp_path / "model")
    change(folder, dtype="float7")
    with pytest.raises(ValueError, match=r"config\.json describes no model .*float7"):
        load_tokenizer(str(folder))


def test_idle_settings_of_sampling_do_not_stop_a_run(tmp_path, caplog):
    """Llama 2's generation_config.json has them, and transformers does not save them."""
    folder = save_model_folder(tmp_path / "model")
    idle = {"temperature": 0.9, "top_p": 0.6, "do_sample": False, "max_length": 50}
    (folder / "generation_config.json").write_text(json.dumps(idle))
    with caplog.at_level(logging.WARNING):
        check_saving(models_of(load(folder)))
    assert "temperature is idle" in caplog.text
    assert "top_p is idle" in caplog.text


def test_a_classifier_whose_head_is_the_embedding_is_no_start_for_text(tmp_path):
    settings = tiny.causal_lm("qwen2", num_labels=3).config
    transformers.Qwen2ForSequenceClassification(settings).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a sequence classifier or reward model, which writes"):
        load(tmp_path)


def test_a_model_that_samples_otherwise_than_it_trains_is_refused(monkeypatch):
    monkeypatch.setattr(alone, "agrees", lambda policy, generate: False)
    with pytest.raises(ValueError, match="LlamaForCausalLM cannot be sampled"):
        alone.way_of(policy("Llama 3"))
