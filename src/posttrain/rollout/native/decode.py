"""One decoding step: a token per row in, the last hidden state of each row out.

For the kinds of layers in `forms` it is written out here, because a step of a small network spends
its time in calls of modules and in passes over small tensors, not in arithmetic. So do prompts that
go through the modules of an adapter; they go through the same numbers. These are taken from the
current weights for every generation; tests hold both to the modules' result.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from posttrain.model.attention import Decode, Packed, attend_packed
from posttrain.model.attention_forms import Form, explicit
from posttrain.model.language_model import LanguageModel
from posttrain.model.many_adapters import using
from posttrain.rollout.native.cache import KVCache
from posttrain.rollout.native.forms import Layer, Network


class Step(Protocol):
    """One decoding step, stale as soon as a weight or the set of adapters changes."""

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        cache: KVCache,
        mask: Tensor,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Return hidden [B, width] from tokens [B], positions [B] and mask [B, capacity].

        The cache has a column for the tokens already; the mask is 0 where a column is the row's
        own, -inf elsewhere. `rows` [B] is the adapter of each row (`many_adapters`)."""


Attention = Callable[[int, Layer, Tensor, Tensor, Tensor], Tensor]
"""(number and layer, queries [N, H, D], keys and values [N, H_kv, D]) -> what is seen [N, H * D]"""


def decode_step(policy: LanguageModel, network: Network | None) -> Step:
    """Return the decoding step of a policy, through its modules if it has no `network`."""
    return by_modules(policy) if network is None else written_out(policy, network)


def packed_states(
    policy: LanguageModel,
    network: Network | None,
    tokens: Tensor,
    positions: Tensor,
    layout: Packed,
    cache: Any,
    rows: Tensor | None,
) -> Tensor:
    """Return the last hidden states [T, width] of packed prompts.

    The cache collects their keys and values; `rows` [N] is the adapter of each prompt."""
    if network is None or policy.edited is not None:
        with using(policy, rows, layout.lengths):
            return policy.hidden_states(tokens[None], positions[None], layout, cache)[0]
    if rows is not None:
        rows = rows.repeat_interleave(torch.tensor(layout.lengths, device=rows.device))
    attention = partial(_in_pack, layout, cache)
    return _through(policy, network, tokens, positions, rows, attention)


def by_modules(policy: LanguageModel) -> Step:
    """Return the step that calls the modules of the policy."""

    def step(
        tokens: Tensor,
        positions: Tensor,
        cache: KVCache,
        mask: Tensor,
        rows: Tensor | None = None,
    ) -> Tensor:
        layout = Decode(mask[:, None, None, : cache.columns])
        with using(policy, rows):
            return policy.hidden_states(tokens[:, None], positions[:, None], layout, cache)[:, 0]

    return step


def written_out(policy: LanguageModel, network: Network) -> Step:
    """Return the step that computes a network from its numbers."""

    def step(
        tokens: Tensor,
        positions: Tensor,
        cache: KVCache,
        mask: Tensor,
        rows: Tensor | None = None,
    ) -> Tensor:
        attention = partial(_against_cache, cache, Masks(mask))
        return _through(policy, network, tokens, positions, rows, attention)

    return step


def _through(
    policy: LanguageModel,
    network: Network,
    tokens: Tensor,
    positions: Tensor,
    rows: Tensor | None,
    attention: Attention,
) -> Tensor:
    """Return the last hidden states [N, width] of tokens [N], each with its row's adapter."""
    x = network.embed(tokens, positions)
    turns = {
        kind: (cos[positions][:, None], sin[positions][:, None])  # [N, 1, D]
        for kind, (cos, sin) in network.tables.items()
    }
    with using(policy, rows):  # for layers that keep their own forward
        for number, layer in enumerate(network.layers):
            before, after, before_mlp, after_mlp = layer.norms
            h = x if before is None else before(x)
            turn = None if layer.table is None else turns[layer.table]
            seen = attention(number, layer, *_heads(layer, h, turn, rows))
            added = layer.output(seen, rows)[0]
            added = added if after is None else after(added)
            if layer.parallel:
                x = x + added + layer.feed_forward(h, rows)
                continue
            x = torch.add(x, added, alpha=layer.residual)
            h = x if before_mlp is None else before_mlp(x)
            added = layer.feed_forward(h, rows)
            added = added if after_mlp is None else after_mlp(added)
            x = torch.add(x, added, alpha=layer.residual)
        return network.norm(x)


class Masks:
    """The mask of a step in the shapes that layers need, each made once."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self.made: dict[tuple[int, ...], Tensor] = {}

    def grouped(self, first: int, used: int, num_kv: int, group: int) -> Tensor:
        """Return [B * num_kv, group, used - first] of the columns from `first` to `used`."""
        key = first, used, num_kv, group
        if key not in self.made:
            part = self.mask[:, None, None, first:used]
            self.made[key] = part.expand(-1, num_kv, group, -1).flatten(0, 1)
        return self.made[key]


def _heads(
    layer: Layer, h: Tensor, turn: tuple[Tensor, Tensor] | None, rows: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries [N, H, D], keys and values [N, H_kv, D] of normalised states [N, width]."""
    q, k, v = layer.qkv(h, rows)
    if layer.query_norms is not None and layer.query_norm == "width":
        q, k = layer.query_norms[0](q), layer.query_norms[1](k)
    q, k, v = (x.view(len(h), -1, layer.size) for x in (q, k, v))
    if layer.query_norms is not None and layer.query_norm == "heads":
        q, k = layer.query_norms[0](q), layer.query_norms[1](k)
    if turn is not None:
        q, k = (_rotated(x, *turn, layer.pairs) for x in (q, k))
    if layer.query_norms is not None and layer.query_norm == "turned":
        q, k = layer.query_norms[0](q), layer.query_norms[1](k)
    return q, k, v


def _in_pack(
    layout: Packed, cache: Any, number: int, layer: Layer, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """Return what packed prompts see of themselves; collect their keys and values."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    k, v = cache.update(k, v, number)
    form = Form(layer.scale, window=layer.window, softcap=layer.softcap)
    return attend_packed(q, k, v, layout, form).flatten(2)[0]


def _against_cache(
    cache: KVCache, masks: Masks, number: int, layer: Layer, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """Return what the newest tokens see of the cache, into which their keys and values go."""
    batch, used, size = len(q), cache.columns, layer.size
    keys, values = cache.layers[number]
    keys[:, :, used - 1], values[:, :, used - 1] = k, v
    first = 0 if layer.window is None else max(0, used - layer.window)
    keys, values = keys[:, :, first:used], values[:, :, first:used]
    num_kv = keys.shape[1]
    # the query heads that share a key head are its rows: [B, H_kv, group, D]
    grouped = q.reshape(batch, num_kv, -1, size).to(keys.dtype)
    if keys.dtype != torch.float32:
        out = _narrow(layer, grouped, keys, values, masks.mask[:, None, None, first:used])
    else:
        mask = masks.grouped(first, used, num_kv, grouped.shape[2])
        grouped, keys, values = (x.flatten(0, 1) for x in (grouped, keys, values))
        if layer.softcap is None:
            scores = torch.baddbmm(mask, grouped, keys.transpose(1, 2), alpha=layer.scale)
        else:
            scores = torch.bmm(grouped, keys.transpose(1, 2)).mul_(layer.scale / layer.softcap)
            scores = scores.tanh_().mul_(layer.softcap).add_(mask)
        out = torch.bmm(scores.softmax(-1), values)
    return out.view(batch, -1)


def _narrow(layer: Layer, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Return attention [B, H_kv, group, D] in 16 bits, computed as the modules' path does."""
    if layer.softcap is not None:
        form = Form(layer.scale, softcap=layer.softcap)
        return explicit(q.reshape(len(q), -1, 1, layer.size), keys, values, mask, form).contiguous()
    mask = mask.to(q.dtype)
    out = scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=layer.scale)
    return out.contiguous()


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, pairs: bool) -> Tensor:
    """Return x * cos + partner(x) * sin, the sign of the turn in sin; x is [B, H, D]."""
    if pairs:
        partner = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    else:
        partner = x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * cos, partner, sin)
