"""The architectures that are read from GGUF files and written to them: settings, names, layouts.

llama.cpp decides from the architecture's name what a setting left out means; what it cannot express
is found by comparing the config that a file describes with the model's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.model.gguf.header import Header
from posttrain.model.gguf.rotation import rope_of, rope_settings

Array = np.ndarray[Any, Any]

LLAMA = {
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "head_dim": "attention.key_length",
}
GPT2 = {
    "n_positions": "context_length",
    "n_layer": "block_count",
    "n_embd": "embedding_length",
    "n_inner": "feed_forward_length",
    "n_head": "attention.head_count",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}
LLAMA_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LLAMA_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
GPT2_LAYER = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
GPT2_TOP = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
TURNED = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
"""GPT-2's matrices, which transformers keeps as [in, out]."""
LEFT_OUT = ("rope_freqs.weight",)
"""Tensors of a file that describe the rotation, not the network."""


@dataclass(frozen=True)
class Architecture:
    """How one architecture of llama.cpp corresponds to one of transformers."""

    name: str
    model_type: str
    """transformers' type that is made of a file."""
    also: tuple[str, ...] = ()
    """Types that are written to a file as well, if nothing of theirs is lost."""
    settings: dict[str, str] = field(default_factory=lambda: LLAMA)
    """transformers' key to the file's, without the architecture in front."""
    top: dict[str, str] = field(default_factory=lambda: LLAMA_TOP)
    layer: dict[str, str] = field(default_factory=lambda: LLAMA_LAYER)
    layers: str = "model.layers"
    rotates_pairs: bool = False
    """Whether llama.cpp rotates neighbouring numbers, so that queries and keys are reordered."""
    derives_head_dim: bool = False
    """Whether transformers' config has no head_dim of its own."""
    adds_one: bool = False
    """Whether the file's norms are the model's plus one (Gemma)."""
    biases: tuple[str, ...] = ()
    """Keys of transformers' config that say whether attention and MLP have biases."""


ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture(
            "llama",
            "llama",
            also=("mistral",),
            rotates_pairs=True,
            biases=("attention_bias", "mlp_bias"),
        ),
        Architecture("qwen2", "qwen2", derives_head_dim=True),
        Architecture("qwen3", "qwen3", biases=("attention_bias",)),
        Architecture(
            "smollm3",
            "smollm3",
            rotates_pairs=True,
            derives_head_dim=True,
            biases=("attention_bias", "mlp_bias"),
        ),
        Architecture("gemma", "gemma", adds_one=True),
        Architecture(
            "gpt2", "gpt2", settings=GPT2, top=GPT2_TOP, layer=GPT2_LAYER, layers="transformer.h"
        ),
    )
}
INERT = {
    "vocab_size",
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
}
"""Settings that are read apart, or that repeat what other settings or tensors say."""
NEUTRAL: dict[str, Any] = {
    "attention.causal": True,
    "attention.clamp_kqv": 0,
    "attention.max_alibi_bias": 0,
    "attention.scale": 0,
    "attention.sliding_window": 0,
    "embedding_scale": 0,
    "expert_count": 0,
    "expert_feed_forward_length": 0,
    "expert_shared_count": 0,
    "expert_used_count": 0,
    "leading_dense_block_count": 0,
    "logit_scale": 0,
    "pooling_type": 0,
    "residual_scale": 0,
}
"""Settings that are read with one value alone: what llama.cpp takes where they are left out."""
OPTIONAL: dict[str, type] = {
    "rope.dimension_count": int,
    "attention.value_length": int,
    "rope.freq_base": float,
    "rope.scaling.factor": float,
    "rope.scaling.original_context_length": int,
}
"""Numbers of INERT that are read."""
NO_NETWORK = {
    "architectures",
    "model_type",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "use_cache",
    "initializer_range",
    "attention_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "summary_type",
    "summary_use_proj",
    "summary_activation",
    "summary_proj_to_labels",
    "summary_first_dropout",
    "pretraining_tp",
    "max_window_layers",
    "reorder_and_upcast_attn",
    "_name_or_path",
    "_attn_implementation_internal",
    "quantization_config",
    "task_specific_params",
    "no_rope_layer_interval",
    "tokenizer_class",
    "is_decoder",
}
"""Keys of a config that do not change what the network computes from token ids."""


def architecture_of(header: Header, file: Path) -> Architecture:
    """Return the entry for a file; raise ValueError for an architecture that is not read."""
    name = str(header.settings.get("general.architecture"))
    if name not in ARCHITECTURES:
        raise ValueError(
            f"{file} holds a model of the architecture {name}, which is not read from GGUF files; "
            f"{', '.join(ARCHITECTURES)} are: take the model's folder with safetensors"
        )
    return ARCHITECTURES[name]


def plain(value: Any) -> Any:
    """Return a file's fp32 number as the shortest decimal with the same fp32 value."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def config_of(header: Header, file: Path) -> Any:
    """Return transformers' config of the model that a file describes.

    Raises ValueError if a setting is missing, makes no sense, contradicts the tensors, or is not
    one that is known.
    """
    from transformers import AutoConfig

    architecture = architecture_of(header, file)
    given = _settings(header, architecture, file)
    values = {
        key: plain(given[theirs])
        for key, theirs in architecture.settings.items()
        if theirs in given
    }
    tensors = header.tensors
    for needed in ("token_embd.weight", "output_norm.weight"):
        if needed not in tensors:
            raise ValueError(
                f"{file} lacks the tensor {needed}: it is no language model: take one "
                f"of {', '.join(ARCHITECTURES)}"
            )
    rows = tensors["token_embd.weight"].shape[0]
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blk.")}
    if blocks != {str(n) for n in range(min(given["block_count"], len(tensors)))}:
        raise ValueError(
            f"{file} is damaged: block_count is {given['block_count']:,}, but it holds the layers "
            f"of {len(blocks)}; copy it again"
        )
    values |= {"vocab_size": rows, "tie_word_embeddings": "output.weight" not in tensors}
    if architecture.settings is LLAMA:
        heads = given["attention.head_count"]
        values.setdefault("num_key_value_heads", heads)
        turned = given.get("rope.dimension_count", given["embedding_length"] // heads)
        size = values.setdefault("head_dim", turned)
        if (turned, given.get("attention.value_length", size)) != (size, size):
            raise ValueError(
                f"{file}: heads that are rotated in part, or of two sizes, are unread: take the "
                "model's folder with safetensors"
            )
        values["rope_parameters"] = rope_of(given, tensors, file, size)
        if size == given["embedding_length"] // heads and architecture.derives_head_dim:
            del values["head_dim"]
    for key, tensor in zip(architecture.biases, ("attn_q.bias", "ffn_up.bias")):
        values[key] = f"blk.0.{tensor}" in tensors
    values |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return AutoConfig.for_model(architecture.model_type, **values)


def _settings(header: Header, architecture: Architecture, file: Path) -> dict[str, Any]:
    """Return the architecture's settings without its name in front, each of them checked."""
    begin = f"{architecture.name}."
    given = {k.removeprefix(begin): v for k, v in header.settings.items() if k.startswith(begin)}
    for key, value in given.items():
        known = key in INERT or key in architecture.settings.values()
        if not known and (key not in NEUTRAL or value != NEUTRAL[key]):
            raise ValueError(
                f"{file} sets {begin}{key} to {value}, which is not read: take the model's folder "
                "with safetensors"
            )
    needed = {k: float if k.endswith("epsilon") else int for k in architecture.settings.values()}
    for key, kind in (needed | OPTIONAL).items():
        number: Any = given.get(key)
        if number is None and key in (*OPTIONAL, "attention.head_count_kv", "attention.key_length"):
            continue
        suits = type(number) is kind
        if not suits or not 0 < number < (2**31 if kind is int else math.inf):
            problem = f"{begin}{key} is {number!r}, not a {kind.__name__}"
            raise ValueError(f"{file} is damaged: {problem}; copy it again")
    heads, kv = given["attention.head_count"], given.get("attention.head_count_kv")
    if given["embedding_length"] % heads and "attention.key_length" not in given:
        raise ValueError(f"{file} is damaged: {heads} heads do not divide its width; copy it again")
    if kv is not None and heads % kv:
        raise ValueError(
            f"{file} is damaged: {kv} key heads do not divide {heads} heads; copy it again"
        )
    return given


def settings_of(config: Any, architecture: Architecture) -> dict[str, Any]:
    """Return a file's settings for a config of transformers, by their names in the file.

    Raises ValueError for a rotation that a file cannot describe.
    """
    values = {theirs: getattr(config, key, None) for key, theirs in architecture.settings.items()}
    if architecture.settings is LLAMA:
        values["attention.key_length"] = size = head_size(config)
        values |= {"attention.value_length": size, "rope.dimension_count": size}
        values |= rope_settings(config)
    elif values["feed_forward_length"] is None:
        values["feed_forward_length"] = 4 * config.n_embd
    values["vocab_size"] = config.vocab_size
    return {f"{architecture.name}.{key}": value for key, value in values.items()}


def head_size(config: Any) -> int:
    """Return the width of an attention head."""
    size = getattr(config, "head_dim", None)
    return int(size or config.hidden_size // config.num_attention_heads)


def check_same(config: Any, described: Any) -> None:
    """Raise ValueError if a file's config would not be that of the model that is written."""
    ours, theirs = config.to_dict(), described.to_dict()
    if ours.get("n_inner", 0) is None:
        ours["n_inner"] = 4 * config.n_embd
    if "head_dim" in ours and ours["head_dim"] is None:
        ours["head_dim"] = head_size(config)
    for key in sorted((ours.keys() & theirs.keys()) - NO_NETWORK) + sorted(
        # a key that begins with _ is a note of a program, such as where the model came from
        key
        for key in ours.keys() - theirs.keys() - NO_NETWORK
        if ours[key] and key[0] != "_"
    ):
        if as_stored(ours[key]) != as_stored(theirs.get(key)):
            raise ValueError(
                f"a GGUF file cannot express {key}: {ours[key]} of this {config.model_type} model "
                f"(it would be read as {theirs.get(key)}): export it as merged or safetensors"
            )


def as_stored(value: Any) -> Any:
    """Return a setting with its numbers as a file stores them, in 32 bits.

    Models that were converted from such files have 9.999999747378752e-06 for 1e-05.
    """
    if isinstance(value, dict):
        return {key: as_stored(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_stored(item) for item in value]
    return float(np.float32(value)) if isinstance(value, float) else value


def file_names(names: Iterator[str], architecture: Architecture) -> dict[str, str]:
    """Return each tensor's name in a file; raise ValueError if the architecture has none."""
    top = {theirs: ours for ours, theirs in architecture.top.items()}
    layer = {theirs: ours for ours, theirs in architecture.layer.items()}
    result = {}
    for name in names:
        stem, _, end = name.rpartition(".")
        if stem.startswith(f"{architecture.layers}."):
            number, _, part = stem.removeprefix(f"{architecture.layers}.").partition(".")
            ours = f"blk.{number}.{layer[part]}" if part in layer else None
        else:
            ours = top.get(stem)
        if ours is None:
            raise ValueError(
                f"a GGUF file of the architecture {architecture.name} has no place for {name}: "
                "export it as merged or safetensors"
            )
        result[name] = f"{ours}.{end}"
    return result


def file_shape(architecture: Architecture, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in a file, by its name there, of a tensor of transformers."""
    return shape[::-1] if architecture.name == "gpt2" and name.endswith(TURNED) else shape


def to_model(architecture: Architecture, config: Any) -> Callable[[str, Array], Array]:
    """Return the function from a file's tensor, by its name there, to transformers' layout."""
    return _layout(architecture, config, (2, -1))


def to_file(architecture: Architecture, config: Any) -> Callable[[str, Array], Array]:
    """Return the function from transformers' tensor, by its name in the file, to the file's."""
    return _layout(architecture, config, (-1, 2))


def _layout(
    architecture: Architecture, config: Any, halves: tuple[int, int]
) -> Callable[[str, Array], Array]:
    reading = halves == (2, -1)

    def change(name: str, tensor: Array) -> Array:
        kind = name.split(".")[-2]
        if architecture.rotates_pairs and kind in ("attn_q", "attn_k"):
            heads = config.num_attention_heads
            heads = heads if kind == "attn_q" else config.num_key_value_heads
            size = tensor.shape[0] // heads
            split = (size // 2, 2) if reading else (2, size // 2)
            parts = tensor.reshape(heads, *split, *tensor.shape[1:])
            return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(tensor.shape)
        if architecture.adds_one and name.endswith("norm.weight"):
            return tensor - np.float32(1) if reading else tensor + np.float32(1)
        if architecture.name == "gpt2" and name.endswith(TURNED):
            return np.ascontiguousarray(tensor.T)
        return tensor

    return change
