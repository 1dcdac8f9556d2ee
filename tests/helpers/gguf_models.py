"""Tiny models, with tokenizers of each rule, that are written to GGUF files and read back."""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from posttrain.model.gguf.tokens import BYTES, RULES
from posttrain.model.scratch import train_tokenizer

TEXTS = [
    "The cat sat on the mat, and it's 1,234 o'clock.\n\nThe dog's 12 bones cost $9.99 in 2024.",
    "def f(x):\n    return x ** 2  # squares\n\n1. one\n2. two\n\n   30 spaces",
] * 4
WIDE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "rope_theta": 5e5,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
YARN |= {"original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256}
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("llama", WIDE | {"tie_word_embeddings": True}, "smollm"),
    "llama (llama3 rope)": ("llama", WIDE | {"rope_parameters": LLAMA3}, "llama-bpe"),
    "llama (yarn)": ("llama", WIDE | {"rope_parameters": YARN}, "gpt-2"),
    "llama (linear rope)": ("llama", WIDE | {"rope_parameters": LINEAR}, "pieces"),
    "llama (biases)": (
        "llama",
        WIDE | {"attention_bias": True, "mlp_bias": True, "head_dim": 32},
        "pieces",
    ),
    "mistral": ("mistral", WIDE | {"sliding_window": None}, "pieces"),
    "qwen2": ("qwen2", WIDE | {"tie_word_embeddings": True}, "own"),
    "qwen2 (spare rows)": ("qwen2", WIDE | {"rms_norm_eps": 1e-5}, "qwen2"),
    "qwen3": ("qwen3", WIDE | {"head_dim": 32}, "own"),
    "smollm3": ("smollm3", WIDE | {"num_hidden_layers": 5}, "llama-bpe"),
    "gemma": ("gemma", WIDE | {"head_dim": 16}, "pieces without prefix"),
    "gpt2": ("gpt2", GPT2, "gpt-2"),
    "gpt2 (narrow)": ("gpt2", GPT2 | {"n_inner": 96}, "gpt-2"),
}
SPARE = 5


@cache
def tokenizer(rule: str) -> Any:
    """A tokenizer trained on TEXTS: by one of RULES, posttrain's own, or SentencePiece's form."""
    if rule == "own":
        return train_tokenizer(TEXTS, 400, 256)
    if rule.startswith("pieces"):
        return pieces(prefix=rule == "pieces")
    normal, steps, whole = RULES[rule]
    frame = json.loads(Tokenizer(models.BPE()).to_str())
    frame["normalizer"] = None if normal is None else {"type": normal}
    frame["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    frame["decoder"] = BYTES | {"use_regex": True}
    inner = Tokenizer.from_str(json.dumps(frame))
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(TEXTS, trainer)
    frame = json.loads(inner.to_str())
    frame["model"]["ignore_merges"] = whole
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(frame)),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


def pieces(prefix: bool) -> Any:
    """A BPE of SentencePiece's form: bytes for what it does not know, the space as a letter."""
    words = ["\u2581", *"abcdefghijklmnopqrstuvwxyzT", "th", "\u2581th", "\u2581the", "he", "at"]
    words += ["\u2581c", "\u2581cat", "an", "and", "\u2581and"]
    merges = [("t", "h"), ("\u2581", "th"), ("h", "e"), ("a", "t"), ("\u2581", "c"), ("a", "n")]
    merges += [("an", "d"), ("\u2581th", "e"), ("\u2581c", "at"), ("\u2581", "and")]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *words]
    vocab = {name: i for i, name in enumerate(names)}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    before = [{"type": "Prepend", "prepend": "\u2581"}, replace]
    back = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}]
    back += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    first = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    frame = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": name, "special": True} | flags
            for i, name in enumerate(("<unk>", "<s>", "</s>"))
        ],
        "normalizer": {"type": "Sequence", "normalizers": before} if prefix else replace,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": x, "type_id": 0}} for x in "AB"],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": back + (strip if prefix else [])},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(frame)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def model_folder(folder: Path, name: str = "llama", **changes: Any) -> Path:
    """Write the tiny model of that name, with weights large enough to matter."""
    kind, keys, rule = MODELS[name]
    words = tokenizer(rule)
    rows = len(words) + (SPARE if "spare" in name else 0)
    ids = {f"{x}_token_id": getattr(words, f"{x}_token_id") for x in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(kind, **(keys | {"vocab_size": rows} | ids | changes))
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape)
            if tensor.dim() == 1:
                tensor.add_(noise * 0.2)
            else:
                embeds = any(part in key for part in ("embed", "wte", "wpe"))
                tensor.copy_(noise * (0.5 if embeds else 1.6 / tensor.shape[-1] ** 0.5))
    model.generation_config.eos_token_id = words.eos_token_id
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def write_by_hand(
    file: Path,
    settings: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    version: int = 3,
    order: str = "<",
) -> Path:
    """A GGUF file of fp32 tensors, written from the format's description alone."""

    def text(value: str) -> bytes:
        raw = value.encode()
        return struct.pack(f"{order}Q", len(raw)) + raw

    def value(content: Any) -> tuple[int, bytes]:
        if isinstance(content, bool):
            return 7, struct.pack(f"{order}?", content)
        if isinstance(content, int):
            return 4, struct.pack(f"{order}I", content)
        if isinstance(content, float):
            return 6, struct.pack(f"{order}f", content)
        if isinstance(content, str):
            return 8, text(content)
        kinds = {value(item)[0] for item in content} or {4}
        (kind,) = kinds
        inner = b"".join(value(item)[1] for item in content)
        return 9, struct.pack(f"{order}IQ", kind, len(content)) + inner

    head = b"GGUF" + struct.pack(f"{order}IQQ", version, len(tensors), len(settings))
    for name, content in settings.items():
        kind, raw = value(content)
        head += text(name) + struct.pack(f"{order}I", kind) + raw
    body = b""
    for name, tensor in tensors.items():
        head += text(name) + struct.pack(f"{order}I", tensor.dim())
        head += b"".join(struct.pack(f"{order}Q", n) for n in reversed(tensor.shape))
        head += struct.pack(f"{order}IQ", 0, len(body))
        raw = tensor.float().contiguous().numpy().tobytes()
        body += raw + b"\0" * (-len(raw) % 32)
    file.write_bytes(head + b"\0" * (-len(head) % 32) + body)
    return file
