"""Attention for packed rows and for decoding, registered with transformers as "posttrain".

A model calls it with whatever layout the caller of the model passed along: `Packed` (training,
prefill) or `Decode` (one new token per row against a cache). No [T, T] mask is ever built, and a
call without a layout is an error, so a row can not be contaminated by its neighbours in silence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "posttrain"


@dataclass
class Packed:
    """N sequences end to end, each attending causally to itself only."""

    lengths: list[int]  # N
    cu_seqlens: Tensor  # [N+1] int32


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
    """Returns [B, S, H, D], the layout transformers expects of an attention function."""
    if layout is None:
        raise ValueError(
            f"{type(module).__name__} did not hand the sequence layout to its attention; "
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
    # split, not slices: its backward is one concatenation instead of N zero-filled tensors
    parts = []
    for q, k, v in zip(*(x.split(layout.lengths, dim=2) for x in (query, key, value))):
        length = q.shape[2]
        windowed = sliding_window is not None and length > sliding_window
        parts.append(
            scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=_window_mask(length, sliding_window, q.device) if windowed else None,
                dropout_p=dropout,
                is_causal=not windowed,
                scale=scaling,
                enable_gqa=q.shape[1] != k.shape[1],
            ).transpose(1, 2)
        )
    return torch.cat(parts, dim=1)


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor:
    """[S, S] bool: query i sees keys i-window+1 .. i."""
    assert window is not None
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril() & ones.triu(1 - window)


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Packed,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # torch >= 2.10, CUDA only

    longest = max(layout.lengths)
    out = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        layout.cu_seqlens,
        layout.cu_seqlens,
        longest,
        longest,
        scale=scaling,
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
    # the heads that share a key head become its queries: one pass over the cache, no repeat
    grouped = query.view(rows, key.shape[1], heads // key.shape[1], width)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(rows, 1, heads, width)


AttentionInterface.register(NAME, attend)
