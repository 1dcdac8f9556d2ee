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

NAME = "posttrain"


@dataclass
class Packed:
    """N segments end to end, each attending causally to itself and to its prefix, if it has one.

    The prefix is a whole earlier segment: the prompt that several completions share."""

    lengths: list[int]  # N
    cu_seqlens: Tensor  # [N+1] int32
    prefixes: list[int | None] | None = None  # N, index of each prefix; None if there are none
    cu_keys: Tensor | None = None  # [N+1] int32, cu_seqlens of the segments with their prefixes
    masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict, repr=False)
    """Masks that the layers of one forward pass share."""


@dataclass
class Decode:
    """One query per row against a cache of L columns."""

    mask: Tensor  # [B, 1, 1, L], 0 where the column is the row's own history, -inf elsewhere


def attend(
    module: torch.nn.Module,
    query: Tensor,  # [B, H, S, D]
    key: Tensor,  # [B, H_kv, S or L, D]
    value: Tensor,  # [B, H_kv, S or L, D]
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    layout: Packed | Decode | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Return [B, S, H, D], the layout that transformers expects of an attention function.

    Raises ValueError for an architecture that passes no layout or an unsupported option."""
    if layout is None:
        raise ValueError(
            f"{type(module).__name__} did not pass the sequence layout to its attention; "
            "this architecture is not supported"
        )
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise ValueError(f"attention option `{name}` of this architecture is not supported")
    if isinstance(layout, Decode):
        return _decode(query, key, value, layout.mask, scaling, sliding_window), None
    if query.is_cuda and query.dtype == torch.bfloat16 and dropout == 0.0:
        return _varlen(query, key, value, layout, scaling, sliding_window), None
    return _per_sequence(query, key, value, layout, scaling, dropout, sliding_window), None


def _per_sequence(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Packed,
    scaling: float | None,
    dropout: float,
    sliding_window: int | None,
) -> Tensor:
    parts = []
    # split, not slices: its backward pass is one concatenation instead of N zero-filled tensors
    queries = query.split(layout.lengths, dim=2)
    for q, k, v in zip(queries, _with_prefixes(key, layout), _with_prefixes(value, layout)):
        before, length = k.shape[2] - q.shape[2], k.shape[2]
        plain = before == 0 and (sliding_window is None or length <= sliding_window)
        parts.append(
            scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=None if plain else _mask(layout, before, length, sliding_window, q),
                dropout_p=dropout,
                is_causal=plain,
                scale=scaling,
                enable_gqa=q.shape[1] != k.shape[1],
            ).transpose(1, 2)
        )
    return torch.cat(parts, dim=1)


def _with_prefixes(x: Tensor, layout: Packed) -> list[Tensor]:
    """Return the keys, or values, of each segment with its prefix in front, [B, H_kv, L, D]."""
    parts = x.split(layout.lengths, dim=2)
    if layout.prefixes is None:
        return list(parts)
    return [
        part if prefix is None else torch.cat([parts[prefix], part], dim=2)
        for part, prefix in zip(parts, layout.prefixes)
    ]


def _mask(layout: Packed, before: int, length: int, window: int | None, query: Tensor) -> Tensor:
    """Return the additive mask [S, L] of a segment with a prefix of `before` keys, L = `length`.

    Query i of the S = L - `before`, at position `before` + i, sees the keys up to its own position,
    or the last `window` of them."""
    key = before, length, window
    if key not in layout.masks:
        ones = torch.ones(length - before, length, dtype=torch.bool, device=query.device)
        visible = ones.tril(before)
        if window is not None:
            visible &= ones.triu(before + 1 - window)
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
    from torch.nn.attention.varlen import varlen_attn  # torch >= 2.10, CUDA only

    cu_keys, longest = layout.cu_seqlens, max(layout.lengths)
    if layout.prefixes is not None:
        assert layout.cu_keys is not None
        keys, values = (_with_prefixes(x, layout) for x in (key, value))
        cu_keys, longest = layout.cu_keys, max(part.shape[2] for part in keys)
        key, value = torch.cat(keys, dim=2), torch.cat(values, dim=2)
    out = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        layout.cu_seqlens,
        cu_keys,
        max(layout.lengths),
        longest,
        scale=scaling,
        # aligned at the last key of each segment, so a query sees the prefix and the keys before it
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, Tensor)
    return out[None]


def _decode(
    query: Tensor,  # [B, H, 1, D]
    key: Tensor,  # [B, H_kv, L, D]
    value: Tensor,  # [B, H_kv, L, D]
    mask: Tensor,  # [B, 1, 1, L]
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    if sliding_window is not None and key.shape[2] > sliding_window:
        mask = mask.clone()
        mask[..., : key.shape[2] - sliding_window] = -torch.inf
    rows, heads, _, width = query.shape
    # query heads that share a key head become its queries: one pass over the cache, no repeat
    grouped = query.view(rows, key.shape[1], heads // key.shape[1], width)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(rows, 1, heads, width)


def use_attention(model: Any) -> None:
    """Make a transformers model call `attend`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation(NAME)
