"""Attention for packed rows and for decoding, registered with transformers as "posttrain".

A model calls it with the layout that the caller of the model passed: `Packed` (training, prefill)
or `Decode` (one new token per row against a cache). No [T, T] mask is ever built, and a call
without a layout is an error, so sequences cannot silently attend to their neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from posttrain.model.attention_forms import Form, chunk_size, explicit, in_same_chunk, no_flash
from posttrain.model.kernels import flash

NAME = "posttrain"


@dataclass
class Packed:
    """N segments end to end, each attending causally to itself and to its prefix, if it has one.

    The prefix is a whole earlier segment: the prompt that several completions share."""

    lengths: list[int]  # N
    cu_seqlens: Tensor  # [N+1] int32
    prefixes: list[int | None] | None = None  # N, index of each prefix; None if there are none
    cu_keys: Tensor | None = None  # [N+1] int32, cu_seqlens of the segments with their prefixes
    cached: list[int] | None = None  # N, keys in front of each segment's own that a cache adds
    edited: tuple[Tensor, Tensor] | None = None  # rows that ReFT edits, at prompts' starts and ends
    masks: dict[tuple[int, int, int | None, int | None], Tensor] = field(
        default_factory=dict, repr=False
    )
    """Masks that the layers of one forward pass share."""
    part: Any = None  # of the rows that run on this rank (sequence parallelism); None for all


@dataclass
class Decode:
    """One query per row against a cache of L columns."""

    mask: Tensor  # [B, 1, 1, L], 0 where the column is the row's own history, -inf elsewhere


def attend(
    module: torch.nn.Module,
    query: Tensor,  # [B, H, S, D]
    key: Tensor,  # [B, H_kv, S or L, D]
    value: Tensor,  # [B, H_kv, S or L, D_v]
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    layout: Packed | Decode | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Return [B, S, H, D_v], the layout that transformers expects of an attention function.

    Raises ValueError for an architecture that passes no layout."""
    if layout is None:
        raise ValueError(
            f"{type(module).__name__} does not pass the sequence layout to its attention function"
        )
    part = layout.part if isinstance(layout, Packed) else None
    if part is not None:
        query, key, value = map(part.to_heads, (query, key, value))
        s_aux = None if s_aux is None else part.heads_of(s_aux)
    form = Form(scaling, dropout, sliding_window, chunk_size(module), softcap, s_aux)
    if isinstance(layout, Decode):
        return _decode(query, key, value, layout.mask, form), None
    out = attend_packed(query, key, value, layout, form)
    return out if part is None else part.to_rows(out), None


def attend_packed(query: Tensor, key: Tensor, value: Tensor, layout: Packed, form: Form) -> Tensor:
    """Return [1, T, H, D_v] of packed queries [1, H, T, D], by the flash kernel if it can."""
    if no_flash(form, key, value) is None:
        # under autocast, the rotation and the norms of queries and keys return fp32
        query, key, value = (x.to(flash.compute_dtype(value)) for x in (query, key, value))
        return _varlen(query, key, value, layout, form.scaling, form.window)
    return _per_sequence(query, key, value, layout, form)


def _per_sequence(query: Tensor, key: Tensor, value: Tensor, layout: Packed, form: Form) -> Tensor:
    parts = []
    # split, not slices: its backward pass is one concatenation instead of N zero-filled tensors
    queries = query.split(layout.lengths, dim=2)
    for q, k, v in zip(queries, _with_prefixes(key, layout), _with_prefixes(value, layout)):
        before, length = k.shape[2] - q.shape[2], k.shape[2]
        plain = before == 0 and all(n is None or length <= n for n in (form.window, form.chunk))
        if form.softcap is not None or form.sinks is not None:
            part = explicit(q, k, v, _mask(layout, before, length, form, q), form)
        else:
            part = scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=None if plain else _mask(layout, before, length, form, q),
                dropout_p=form.dropout,
                is_causal=plain,
                scale=form.scaling,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        parts.append(part.transpose(1, 2))
    return torch.cat(parts, dim=1)


def _with_prefixes(x: Tensor, layout: Packed) -> list[Tensor]:
    """Return the keys, or values, of each segment with its prefix in front, [B, H_kv, L, D]."""
    cached = layout.cached or [0] * len(layout.lengths)
    parts = x.split([n + m for n, m in zip(layout.lengths, cached)], dim=2)
    if layout.prefixes is None:
        return list(parts)
    return [
        part if prefix is None else torch.cat([parts[prefix], part], dim=2)
        for part, prefix in zip(parts, layout.prefixes)
    ]


def _mask(layout: Packed, before: int, length: int, form: Form, query: Tensor) -> Tensor:
    """Return the additive mask [S, L] of a segment with a prefix of `before` keys, L = `length`.

    Query i of the S = L - `before`, at position `before` + i, sees the keys up to its own position,
    or the last of them, as the layer's window or chunk says."""
    key = before, length, form.window, form.chunk
    if key not in layout.masks:
        ones = torch.ones(length - before, length, dtype=torch.bool, device=query.device)
        visible = ones.tril(before)
        if form.window is not None:
            visible &= ones.triu(before + 1 - form.window)
        if form.chunk is not None:
            visible &= in_same_chunk(before, length, form.chunk, query.device)
        zeros = torch.zeros(visible.shape, dtype=query.dtype, device=query.device)
        layout.masks[key] = zeros.masked_fill_(~visible, -torch.inf)
    return layout.masks[key]


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Packed,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    cu_keys, longest = layout.cu_seqlens, max(layout.lengths)
    if layout.cu_keys is not None:
        keys, values = (_with_prefixes(x, layout) for x in (key, value))
        cu_keys, longest = layout.cu_keys, max(part.shape[2] for part in keys)
        key, value = torch.cat(keys, dim=2), torch.cat(values, dim=2)
    out = flash.varlen(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        layout.cu_seqlens,
        cu_keys,
        max(layout.lengths),
        longest,
        scale=scaling,
        sliding_window=sliding_window,
    )
    return out[None]


def _decode(
    query: Tensor,  # [B, H, 1, D]
    key: Tensor,  # [B, H_kv, L, D]
    value: Tensor,  # [B, H_kv, L, D_v]
    mask: Tensor,  # [B, 1, 1, L]
    form: Form,
) -> Tensor:
    columns = key.shape[2]
    if form.window is not None and columns > form.window:
        mask = mask.clone()
        mask[..., : columns - form.window] = -torch.inf
    if form.chunk is not None:
        own = (mask == 0).sum(-1, keepdim=True)  # the row's columns, of its positions 0, 1, ...
        first = columns - own + (own - 1) // form.chunk * form.chunk
        mask = mask.masked_fill(torch.arange(columns, device=mask.device) < first, -torch.inf)
    if form.softcap is not None or form.sinks is not None:
        return explicit(query, key, value, mask, form).transpose(1, 2)
    rows, heads, _, width = query.shape
    # query heads that share a key head become its queries: one pass over the cache, no repeat
    grouped = query.view(rows, key.shape[1], heads // key.shape[1], width)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=form.scaling)
    return out.reshape(rows, 1, heads, value.shape[3])


def use_attention(model: Any) -> None:
    """Make a transformers model call `attend`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation(NAME)
