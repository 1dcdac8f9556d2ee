"""One decoding step: a token per row in, the last hidden state of each row out.

For Llama-like networks it is written out here, because a step of a small network spends its time in
calls of modules and in passes over small tensors, not in arithmetic. The step is built for every
generation from the current weights; tests hold it to the modules' result.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from posttrain.model.attention import Decode
from posttrain.model.kernels.linear import Linear, reusable
from posttrain.model.language_model import LanguageModel
from posttrain.rollout.native.cache import KVCache

Step = Callable[[Tensor, Tensor, KVCache, Tensor], Tensor]
"""(tokens [B], positions [B], cache, mask [B, capacity]) -> hidden [B, width]. The cache has a
column for the tokens already; the mask is 0 where a column is the row's own, -inf elsewhere."""


def decode_step(policy: LanguageModel, longest: int) -> Step:
    """Return the decoding step of a policy, for positions below `longest`."""
    return _written_out(policy, longest) if _is_llama(policy) else partial(_by_modules, policy)


def _by_modules(
    policy: LanguageModel, tokens: Tensor, positions: Tensor, cache: KVCache, mask: Tensor
) -> Tensor:
    layout = Decode(mask[:, None, None, : cache.columns])
    return policy.hidden_states(tokens[:, None], positions[:, None], layout, cache)[:, 0]


def _is_llama(policy: LanguageModel) -> bool:
    """Whether the backbone is exactly what is written out below."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer
    from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

    backbone: Any = policy.backbone()
    layers = getattr(backbone, "layers", [])
    return (
        policy.autocast is None
        and len(layers) > 0
        and all(
            type(layer) in (LlamaDecoderLayer, Qwen2DecoderLayer)
            and getattr(layer.self_attn, "sliding_window", None) is None
            for layer in layers
        )
        and backbone.config.hidden_act == "silu"
        and backbone.rotary_emb.rope_type in ("default", "linear", "llama3")
        and not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())
    )


def _projection(module: Any) -> Callable[[Tensor], Tensor]:
    """Return a layer's function; an adapted or quantised layer keeps its own forward."""
    if type(module) in (nn.Linear, Linear):
        return reusable(module.weight, module.bias)
    forward: Callable[[Tensor], Tensor] = module
    return forward


def _written_out(policy: LanguageModel, longest: int) -> Step:
    backbone: Any = policy.backbone()
    config = backbone.config
    embedding, eps = backbone.embed_tokens.weight, config.rms_norm_eps
    width, size = config.hidden_size, backbone.layers[0].self_attn.head_dim
    num_kv, group = config.num_key_value_heads, backbone.layers[0].self_attn.num_key_value_groups
    scale = backbone.layers[0].self_attn.scaling
    positions = torch.arange(longest, device=embedding.device)[None]
    cos, sin = (table[0] for table in backbone.rotary_emb(embedding, positions))  # [longest, D]
    # rotate(x) = x * cos + roll(x) * sin, the sign of the first half moved into sin
    sin = torch.cat((-sin[:, : size // 2], sin[:, size // 2 :]), dim=1)
    layers = [
        (
            layer.input_layernorm.weight,
            *map(_projection, (attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj)),
            layer.post_attention_layernorm.weight,
            *map(_projection, (mlp.gate_proj, mlp.up_proj, mlp.down_proj)),
        )
        for layer in backbone.layers
        for attn, mlp in [(layer.self_attn, layer.mlp)]
    ]

    def step(tokens: Tensor, positions: Tensor, cache: KVCache, mask: Tensor) -> Tensor:
        rows, used = len(tokens), cache.columns
        x = embedding[tokens]
        turn, cross = cos[positions][:, None], sin[positions][:, None]  # [B, 1, D]
        # the query heads that share a key head are its rows: [B * H_kv, group, columns]
        mask = mask[:, None, None, :used].expand(rows, num_kv, group, used).flatten(0, 1)
        for number, (norm_1, to_q, to_k, to_v, to_o, norm_2, gate, up, down) in enumerate(layers):
            keys, values = cache.layers[number]
            h = rms_norm(x, (width,), norm_1, eps)
            q, k = to_q(h).view(rows, -1, size), to_k(h).view(rows, num_kv, size)
            q = torch.addcmul(q * turn, q.roll(size // 2, -1), cross)
            keys[:, :, used - 1] = torch.addcmul(k * turn, k.roll(size // 2, -1), cross)
            values[:, :, used - 1] = to_v(h).view(rows, num_kv, size)
            past_keys, past_values = (c[:, :, :used].flatten(0, 1) for c in (keys, values))
            q = q.view(rows * num_kv, group, size)
            weights = torch.baddbmm(mask, q, past_keys.transpose(1, 2), alpha=scale).softmax(-1)
            x = x + to_o(torch.bmm(weights, past_values).view(rows, -1))
            h = rms_norm(x, (width,), norm_2, eps)
            x = x + down(silu(gate(h)).mul_(up(h)))
        return rms_norm(x, (width,), backbone.norm.weight, eps)

    return step
