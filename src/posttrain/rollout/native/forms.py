"""Decoder layers that are written out for sampling, and what sets each kind apart.

A kind is a row of FORMS. What is in the layer itself (soft cap, scale, width of a window, the
adapters of its projections) is read from it. Whatever is not listed keeps its modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posttrain.model.kernels import fused
from posttrain.model.language_model import LanguageModel
from posttrain.rollout.native.projections import Project, joined

Norm = Callable[[Tensor], Tensor]
Names = tuple[str | None, str | None, str | None, str | None]
PRE: Names = ("input_layernorm", None, "post_attention_layernorm", None)
POST: Names = (None, "post_attention_layernorm", None, "post_feedforward_layernorm")
AROUND: Names = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def _own_window(attention: Any) -> int | None:
    return getattr(attention, "sliding_window", None)


def _config_window(attention: Any) -> int | None:
    return getattr(attention.config, "sliding_window", None)


@dataclass(frozen=True)
class Form:
    """What sets a kind of decoder layer apart from Llama's."""

    norms: Names = PRE
    """Names of the norms before and after attention, before and after the feed-forward part."""
    query_norm: Literal["heads", "width", "turned"] | None = None
    """Whether queries and keys are normalised: by head, as a whole, or by head after rotation."""
    query_norms: tuple[str, str] = ("q_norm", "k_norm")
    """Names of these norms."""
    rotation: Literal["halves", "pairs", "spread"] = "halves"
    """What turns together: both halves of a head, neighbours, or these by the table of halves."""
    window: Callable[[Any], int | None] = _own_window
    """Number of keys that a query of an attention layer sees."""
    rotates: Callable[[Any], bool] = lambda attention: True
    """Whether an attention layer rotates queries and keys."""
    gated: bool = True
    """Whether the feed-forward part is down(act(gate) * up); if not, it is called as it is."""
    parallel: bool = False
    """Whether the feed-forward part reads what attention reads."""


FORMS: dict[str, Form] = {
    "Llama": Form(window=lambda attention: None),
    "Qwen2": Form(),
    "Qwen2Moe": Form(gated=False),
    "Qwen3": Form(query_norm="heads"),
    "Qwen3Moe": Form(query_norm="heads", gated=False),
    "Mistral": Form(window=_config_window),
    "Ministral": Form(),
    "Mixtral": Form(window=_config_window, gated=False),
    "SmolLM3": Form(rotates=lambda attention: bool(attention.use_rope)),
    "Gemma": Form(),
    "Gemma2": Form(AROUND),
    "Gemma3": Form(AROUND, query_norm="heads"),
    "VaultGemma": Form(("input_layernorm", None, "pre_feedforward_layernorm", None)),
    "Olmo2": Form(POST, query_norm="width"),
    "Olmo3": Form(POST, query_norm="width"),
    "Exaone4": Form(
        POST,
        query_norm="heads",
        window=lambda attention: attention.sliding_window if attention.is_sliding else None,
        rotates=lambda attention: attention.sliding_window is None or attention.is_sliding,
    ),
    "Granite": Form(),
    "Cohere2": Form(
        ("input_layernorm", None, None, None),
        rotation="pairs",
        rotates=lambda attention: attention.sliding_window is not None,
        parallel=True,
    ),
    "Helium": Form(rotation="spread"),
    "Ernie4_5": Form(rotation="spread"),
    "SeedOss": Form(),
    "Arcee": Form(gated=False),
    "Cwm": Form(),
    "Starcoder2": Form(window=_config_window, gated=False),
    "HunYuanDenseV1": Form(query_norm="turned", query_norms=("query_layernorm", "key_layernorm")),
    "Apertus": Form(
        ("attention_layernorm", None, "feedforward_layernorm", None),
        query_norm="heads",
        gated=False,
    ),
}
"""By the prefix of the names of transformers' classes."""


@dataclass
class Layer:
    """A decoder layer as functions and numbers."""

    norms: list[Norm | None]  # before and after attention, before and after the feed-forward part
    qkv: Project
    output: Project
    feed_forward: Callable[[Tensor, Tensor | None], Tensor]
    size: int
    """Width of a head."""
    scale: float
    query_norm: str | None = None
    query_norms: tuple[Norm, Norm] | None = None
    table: str | None = None
    """Name of the table of rotations, None if nothing is rotated."""
    pairs: bool = False
    window: int | None = None
    softcap: float | None = None
    residual: float = 1.0
    """Factor of what attention and the feed-forward part add."""
    parallel: bool = False


@dataclass
class Network:
    """A backbone as functions and numbers."""

    embed: Callable[[Tensor, Tensor], Tensor]  # (tokens [B], positions [B]) -> [B, width]
    layers: list[Layer]
    norm: Norm
    tables: dict[str, tuple[Tensor, Tensor]]
    """Cosines and signed sines of every position, [longest, size], by kind of layer."""


def network_of(policy: LanguageModel, longest: int) -> Network | None:
    """Return a policy's backbone for positions below `longest`; None if it keeps its modules."""
    backbone: Any = policy.backbone()
    if policy.rope_limit is not None or policy.vocab_shard is not None or not _quiet(backbone):
        return None
    if _name(backbone) == "GPT2Model":
        return _gpt2(policy, backbone)
    layers: Any = getattr(backbone, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        return None
    prefix = _name(layers[0]).removesuffix("DecoderLayer")
    if prefix not in FORMS or not all(_fits(layer, prefix) for layer in layers):
        return None
    tables = _tables(backbone, FORMS[prefix], longest)
    attention: Any = layers[0].self_attn
    if any(cos.shape[1] != attention.head_dim for cos, _ in tables.values()):
        return None  # only a part of a head turns
    return Network(
        _embedding(backbone),
        [_layer(policy, layer, FORMS[prefix], tables) for layer in layers],
        _norm(backbone.norm, policy),
        tables,
    )


def _name(module: nn.Module) -> str:
    """Return the name of a class of transformers, empty for any other."""
    kind = type(module)
    return kind.__name__ if kind.__module__.startswith("transformers.models.") else ""


def _fits(layer: Any, prefix: str) -> bool:
    """Whether a layer and its attention are transformers' of this kind, as is its gated part."""
    attention = getattr(layer, "self_attn", None)
    if attention is None or getattr(layer, "mlp", None) is None:
        return False
    kind, own = _name(layer), _name(attention)
    gated = type(layer.mlp) is fused.MLP or _name(layer.mlp) == f"{prefix}MLP"
    return (
        (kind, own) == (f"{prefix}DecoderLayer", f"{prefix}Attention")
        and (gated or not FORMS[prefix].gated)
        and not getattr(layer.self_attn, "qk_layernorm", False)
    )


def _quiet(backbone: nn.Module) -> bool:
    """Whether nothing is hooked to a module except what does nothing in a decoding step.

    A hook says so by an attribute `decode_safe`."""
    return all(
        getattr(hook, "decode_safe", False)
        for module in backbone.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
    )


def _layer(
    policy: LanguageModel, layer: Any, form: Form, tables: dict[str, tuple[Tensor, Tensor]]
) -> Layer:
    attention, config = layer.self_attn, policy.causal_lm().config
    adapters, compute = policy.adapters, policy.autocast
    table = next(iter(tables))
    if len(tables) > 1:
        table = config.layer_types[attention.layer_idx]
    exact = compute is None  # autocast makes the outputs of projections narrow

    def norm(owner: Any, name: str, wide: bool) -> Norm:
        return _norm(getattr(owner, name), policy, wide)

    norms = [
        None if name is None else norm(layer, name, place in (0, 2) or exact)
        for place, name in enumerate(form.norms)
    ]
    query_norms = None
    if form.query_norm is not None:
        first, second = form.query_norms
        query_norms = norm(attention, first, exact), norm(attention, second, exact)
    return Layer(
        norms,
        joined((attention.q_proj, attention.k_proj, attention.v_proj), compute, adapters),
        joined((attention.o_proj,), compute, adapters),
        _gated(layer.mlp, policy) if form.gated else _called(layer.mlp),
        attention.head_dim,
        attention.scaling,
        form.query_norm,
        query_norms,
        table if form.rotates(attention) else None,
        form.rotation != "halves",
        form.window(attention),
        getattr(attention, "attn_logit_softcapping", None),
        float(getattr(layer, "residual_multiplier", 1.0)),
        form.parallel,
    )


def _gpt2(policy: LanguageModel, backbone: Any) -> Network | None:
    adapters, compute = policy.adapters, policy.autocast
    layers = []
    for block in backbone.h:
        attention, mlp = block.attn, block.mlp
        if (_name(block), _name(attention)) != ("GPT2Block", "GPT2Attention"):
            return None
        if hasattr(block, "crossattention"):
            return None
        qkv = joined((attention.c_attn,), compute, adapters)
        norms = [_norm(block.ln_1, policy), None, _norm(block.ln_2, policy), None]
        split = partial(_thirds, qkv)
        output = joined((attention.c_proj,), compute, adapters)
        up, down = (joined((part,), compute, adapters) for part in (mlp.c_fc, mlp.c_proj))
        feed_forward = partial(_two_layers, up, mlp.act, down)
        size, scale = attention.head_dim, float(attention.scaling)
        layers.append(Layer(norms, split, output, feed_forward, size, scale))

    def embed(tokens: Tensor, positions: Tensor) -> Tensor:
        states: Tensor = backbone.wte(tokens) + backbone.wpe(positions)
        return states

    return Network(embed, layers, _norm(backbone.ln_f, policy), {})


def _thirds(qkv: Project, x: Tensor, rows: Tensor | None) -> tuple[Tensor, ...]:
    return qkv(x, rows)[0].chunk(3, dim=-1)


def _two_layers(up: Project, act: Any, down: Project, x: Tensor, rows: Tensor | None) -> Tensor:
    return down(act(up(x, rows)[0]), rows)[0]


def _embedding(backbone: Any) -> Callable[[Tensor, Tensor], Tensor]:
    embedding, factor = backbone.embed_tokens, getattr(backbone, "embedding_multiplier", None)
    if type(embedding) is nn.Embedding and factor is None:
        return lambda tokens, positions: embedding.weight[tokens]
    if factor is None:
        return lambda tokens, positions: embedding(tokens)
    return lambda tokens, positions: embedding(tokens) * factor


def _tables(backbone: Any, form: Form, longest: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return cosines and sines with the sign of the turn, [longest, size], by kind of layer."""
    rotary, like = backbone.rotary_emb, backbone.embed_tokens.weight
    positions = torch.arange(longest, device=like.device)[None]
    if isinstance(rotary.rope_type, dict):
        kinds = sorted(set(backbone.config.layer_types))
        found = {kind: rotary(like, positions, kind) for kind in kinds}
    else:
        found = {"": rotary(like, positions)}
    return {kind: _signed(cos[0], sin[0], form.rotation) for kind, (cos, sin) in found.items()}


def _signed(cos: Tensor, sin: Tensor, rotation: str) -> tuple[Tensor, Tensor]:
    half = cos.shape[1] // 2
    if rotation == "halves":
        return cos, torch.cat((-sin[:, :half], sin[:, half:]), dim=1)
    if rotation == "spread":
        cos, sin = (x[:, :half].repeat_interleave(2, dim=1) for x in (cos, sin))
    sign = torch.tensor([-1.0, 1.0], device=sin.device, dtype=sin.dtype).repeat(half)
    return cos, sin * sign


def _norm(module: Any, policy: LanguageModel, wide: bool = True) -> Norm:
    """Return a norm's function: torch's in fp32, if the module computes that, else the module.

    `wide` says whether its input is fp32 if its weight is."""
    backbone: Any = policy.backbone()
    states, weight = backbone.get_input_embeddings().weight, getattr(module, "weight", None)
    if not wide or weight is None or not weight.dtype == states.dtype == torch.float32:
        return lambda x: module(x)
    name = _name(module)
    if type(module) is nn.LayerNorm:
        return partial(_layer_norm, weight, module.bias, module.eps)
    if name in ("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm", "VaultGemmaRMSNorm"):
        return partial(_rms_norm, 1.0 + weight, module.eps)
    if type(module) is fused.RMSNorm or name in ("Olmo2RMSNorm", "Olmo3RMSNorm"):
        return partial(_rms_norm, weight, module.variance_epsilon)
    return lambda x: module(x)


def _layer_norm(weight: Tensor, bias: Tensor | None, eps: float, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _rms_norm(weight: Tensor, eps: float, x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def _gated(mlp: Any, policy: LanguageModel) -> Callable[[Tensor, Tensor | None], Tensor]:
    adapters, compute, act = policy.adapters, policy.autocast, mlp.act_fn
    both = joined((mlp.gate_proj, mlp.up_proj), compute, adapters)
    down = joined((mlp.down_proj,), compute, adapters)
    act = F.silu if isinstance(act, nn.SiLU) or type(act).__name__ == "SiLUActivation" else act

    def feed_forward(x: Tensor, rows: Tensor | None) -> Tensor:
        gate, up = both(x, rows)
        return down(act(gate).mul_(up), rows)[0]

    return feed_forward


def _called(module: Any) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Return a feed-forward part's own function; its hooks add the adapters of the rows."""

    def feed_forward(x: Tensor, rows: Tensor | None) -> Tensor:
        states: Tensor = module(x[:, None])[:, 0]
        return states

    return feed_forward
