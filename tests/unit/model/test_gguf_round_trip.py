"""GGUF files that are written: read back they are the same model, and what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_models import MODELS, TEXTS, WIDE, model_folder, tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
)

from posttrain.model.gguf.architectures import ARCHITECTURES, check_same, file_names
from posttrain.model.gguf.header import read_header
from posttrain.model.gguf.reading import convert_gguf, expected_shapes
from posttrain.model.gguf.rotation import factors
from posttrain.model.gguf.tokens import stops_of
from posttrain.model.gguf.writing import KINDS, write_gguf

gguf = pytest.importorskip("gguf")
PROBES = [
    *TEXTS[:2],
    "1234567 ab12\n\n12",
    "na\u00efve \u4f60\u597d  \n\n x",
    "\u00bd \u00b2 \u2167 \u0661\u0662\u0663",
    " leading",
    "it's IT'S",
    "\U0001f600",
    "",
    "a  b   c",
]
SAMPLED = ("llama (llama3 rope)", "qwen2", "gemma", "gpt2")
THEIRS = ("llama", "qwen2", "qwen2 (spare rows)", "gpt2")
"""Models that transformers' own reader reads truly; it leaves out biases of a Llama, its scaled
rotations, Qwen3's width of a head, and GPT-2's number of positions."""


def greedy(folder: Path, prompts: list[list[int]], count: int = 16) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config = GenerationConfig()
    return [
        model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=count,
            pad_token_id=0,
        )[0, len(ids) :].tolist()
        for ids in prompts
    ]


@pytest.mark.parametrize("name", list(MODELS))
def test_a_file_read_back_is_the_same_model(name: str, tmp_path: Path) -> None:
    source = model_folder(tmp_path / "source", name)
    written = write_gguf(source, tmp_path / "x.gguf", "f32", {"name": "x", "license": "mit"})
    assert written.error == 0 or name == "gemma"
    convert_gguf(tmp_path / "x.gguf", tmp_path / "back")
    before, after = (load_file(f / "model.safetensors") for f in (source, tmp_path / "back"))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        if name == "gemma" and key.endswith("norm.weight"):  # kept as the norm plus one
            assert torch.allclose(tensor, after[key], atol=1e-6)
        else:
            assert torch.equal(tensor, after[key]), key
    configs = [AutoConfig.from_pretrained(f) for f in (source, tmp_path / "back")]
    check_same(*configs)
    old, new = (AutoTokenizer.from_pretrained(f) for f in (source, tmp_path / "back"))
    texts = [*PROBES, *(f"a{t}b {t}" for t in old.all_special_tokens)]
    assert [old(t)["input_ids"] for t in texts] == [new(t)["input_ids"] for t in texts]
    assert [old.decode(old(t)["input_ids"]) for t in texts] == [
        new.decode(new(t)["input_ids"]) for t in texts
    ]
    assert old.get_vocab() == new.get_vocab()
    assert (old.eos_token, old.bos_token, old.pad_token) == (
        new.eos_token,
        new.bos_token,
        new.pad_token,
    )
    if name not in SAMPLED:
        return
    prompts = [old("The cat")["input_ids"], old(TEXTS[1])["input_ids"][:60]]
    assert greedy(source, prompts) == greedy(tmp_path / "back", prompts)


@pytest.mark.parametrize("name", THEIRS)
def test_transformers_reads_the_same_weights(name: str, tmp_path: Path, capfd: Any) -> None:
    source = model_folder(
        tmp_path / "source", name, **({"n_positions": 1024} if "gpt" in name else {})
    )
    write_gguf(source, tmp_path / "x.gguf", "f32", {})
    theirs: Any = AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file="x.gguf", dtype=torch.float32
    )
    ours: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    assert torch.allclose(theirs.eval()(ids).logits, ours.eval()(ids).logits, atol=1e-4)


@pytest.mark.parametrize("name", [a for a in ARCHITECTURES if a != "gemma"])
def test_names_are_those_of_ggufs_own_map(name: str, tmp_path: Path) -> None:
    kind, keys, _ = MODELS[name]
    config = AutoConfig.for_model(kind, **keys)
    names = file_names(iter(expected_shapes(config)), ARCHITECTURES[name])
    arch = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == name)
    known = gguf.get_tensor_name_map(arch, 8)
    for theirs, ours in names.items():
        stem, _, end = theirs.rpartition(".")
        assert f"{known.get_name(stem)}.{end}" == ours


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "f32"])
def test_each_kind_of_numbers_is_what_it_says(kind: str, tmp_path: Path) -> None:
    source = model_folder(tmp_path / "source")
    written = write_gguf(source, tmp_path / "x.gguf", kind, {})
    convert_gguf(tmp_path / "x.gguf", tmp_path / "back")
    before, after = (load_file(f / "model.safetensors") for f in (source, tmp_path / "back"))
    dtypes = {"f16": torch.float16, "bf16": torch.bfloat16}
    largest = 0.0
    for key, tensor in before.items():
        if tensor.dim() == 1:
            assert torch.equal(tensor, after[key])
        elif kind in dtypes:
            assert torch.equal(tensor.to(dtypes[kind]).float(), after[key])
        if tensor.dim() == 2:
            error = float((tensor - after[key]).norm() / tensor.norm())
            largest = max(largest, error)
    assert written.error == pytest.approx(largest, rel=1e-3)
    assert largest <= (KINDS[kind] or 0.005)
    size = (tmp_path / "x.gguf").stat().st_size
    numbers = sum(t.numel() for t in before.values())
    bits = {"q8_0": 8.5, "q5_1": 6, "q5_0": 5.5, "q4_1": 5, "q4_0": 4.5}.get(kind, 16)
    assert size < numbers * max(bits, 6.5) / 8 + 40_000


def test_rows_that_a_block_does_not_divide_are_not_quantised(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "source", intermediate_size=80)
    write_gguf(source, tmp_path / "x.gguf", "q8_0", {})
    tensors = read_header(tmp_path / "x.gguf").tensors
    assert tensors["blk.0.ffn_down.weight"].kind == 1
    assert tensors["blk.0.ffn_up.weight"].kind == 8


def test_llama_3s_factors_by_the_formula() -> None:
    """Two of them by hand: a frequency that is kept, and the lowest, divided by the factor."""
    rope = {"rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    result = factors(rope | {"original_max_position_embeddings": 8192}, 64)
    assert result[0] == 1.0
    assert result[-1] == 8.0
    length = 2 * np.pi * 5e5 ** (2 * 17 / 64)  # between 8192 / 4 and 8192
    smooth = (8192 / length - 1) / 3
    assert result[17] == pytest.approx(1 / ((1 - smooth) / 8 + smooth), rel=1e-6)


def test_several_stop_tokens_are_kept(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "source", "qwen2")
    words = tokenizer("own")
    file = source / "generation_config.json"
    stops = [0, words.eos_token_id, 7]
    file.write_text(json.dumps({"eos_token_id": stops}))
    write_gguf(source, tmp_path / "x.gguf", "f32", {})
    settings = read_header(tmp_path / "x.gguf").settings
    assert stops_of(settings, tmp_path) == [words.eos_token_id, 0, 7]
    convert_gguf(tmp_path / "x.gguf", tmp_path / "back")
    saved = json.loads((tmp_path / "back/generation_config.json").read_text())
    assert saved["eos_token_id"] == [words.eos_token_id, 0, 7]
    assert AutoTokenizer.from_pretrained(tmp_path / "back").chat_template == words.chat_template
    file.write_text(json.dumps({"eos_token_id": [0, 1, 2, 3]}))
    with pytest.raises(ValueError, match="at most 3 stop tokens, this model 4"):
        write_gguf(source, tmp_path / "y.gguf", "f32", {})


def test_weights_in_several_files_are_written(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "source")
    write_gguf(source, tmp_path / "one.gguf", "f32", {})
    model: Any = AutoModelForCausalLM.from_pretrained(source)
    model.save_pretrained(source, max_shard_size="100KB")
    (source / "model.safetensors").unlink(missing_ok=True)
    write_gguf(source, tmp_path / "many.gguf", "f32", {})
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "many.gguf").read_bytes()


CANNOT = {
    "a window": ("mistral", {"sliding_window": 16}, "cannot express sliding_window: 16"),
    "an activation": ("llama", {"hidden_act": "gelu"}, "cannot express hidden_act: gelu"),
    "a rotation": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        "cannot express the rotation dynamic",
    ),
    "yarn's own keys": (
        "llama",
        {"rope_parameters": MODELS["llama (yarn)"][1]["rope_parameters"] | {"beta_fast": 16}},
        "cannot express rope_parameters",
    ),
    "layers without rotation": (
        "smollm3",
        {"no_rope_layer_interval": 2},
        "cannot express no_rope_layers",
    ),
    "scaled attention": (
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True},
        "cannot express scale_attn_by_inverse_layer_idx",
    ),
}


@pytest.mark.parametrize("what", list(CANNOT))
def test_what_a_file_cannot_express_is_refused(what: str, tmp_path: Path) -> None:
    name, changes, message = CANNOT[what]
    source = model_folder(tmp_path / "source", name, **changes)
    with pytest.raises(ValueError, match=message):
        write_gguf(source, tmp_path / "x.gguf", "f32", {})


def test_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    config = AutoConfig.for_model("phi", **WIDE, vocab_size=400)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "phi")
    tokenizer("own").save_pretrained(tmp_path / "phi")
    with pytest.raises(ValueError, match=r"a phi model cannot be written .*llama, mistral"):
        write_gguf(tmp_path / "phi", tmp_path / "x.gguf", "f32", {})


def spoil(folder: Path, change: Any) -> None:
    """Change a folder's tokenizer.json."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def other_rule(content: Any) -> None:
    content["pre_tokenizer"] = {"type": "Whitespace"}


def greedy_token(content: Any) -> None:
    content["added_tokens"][1]["rstrip"] = True


def lower_case(content: Any) -> None:
    content["normalizer"] = {"type": "Lowercase"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_rule, "a rule that a GGUF file cannot name"),
        (greedy_token, "takes in the spaces around it"),
        (lower_case, "a rule that a GGUF file cannot name"),
    ],
)
def test_other_tokenizers_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    source = model_folder(tmp_path / "source")
    spoil(source, change)
    with pytest.raises(ValueError, match=message):
        write_gguf(source, tmp_path / "x.gguf", "f32", {})


def test_merges_that_follow_from_no_scores_are_refused(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "source", "mistral")

    def drop(content: Any) -> None:
        content["model"]["merges"].remove(["a", "t"])

    spoil(source, drop)
    with pytest.raises(ValueError, match="do not follow from scores"):
        write_gguf(source, tmp_path / "x.gguf", "f32", {})


def test_numbers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    key = "model.layers.1.mlp.up_proj.weight"
    for value, kind, message in (
        (1e5, "f16", "too large for f16"),
        (float("nan"), "f32", "not finite"),
        (float("inf"), "q8_0", "not finite"),
    ):
        tensors[key][3, 5] = value
        save_file(tensors, source / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=f"blk.1.ffn_up.weight holds .*{message}"):
            write_gguf(source, tmp_path / "x.gguf", kind, {})


def test_a_number_of_32_bits_is_the_one_that_a_file_stores() -> None:
    """As in models that other programs have converted from GGUF files."""
    short, long = LlamaConfig(rms_norm_eps=1e-5), LlamaConfig(rms_norm_eps=9.999999747378752e-06)
    check_same(long, short)
    check_same(LlamaConfig(_model_name_or_path="from another program"), LlamaConfig())
    with pytest.raises(ValueError, match=r"cannot express rms_norm_eps: 1\.1e-05"):
        check_same(LlamaConfig(rms_norm_eps=1.1e-5), short)
