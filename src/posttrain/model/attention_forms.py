"""Forms of attention that some architectures have: caps, sinks, chunks, windows.

Soft caps (Gemma 2, arXiv 2408.00118) and sinks (gpt-oss) change the softmax, so they are written
out; PyTorch's fused kernels do neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout

from posttrain.model.kernels import flash


@dataclass(frozen=True)
class Form:
    """How a layer attends, apart from which tokens belong together."""

    scaling: float | None = None
    """Factor of the scores; None is 1 / sqrt(D)."""
    dropout: float = 0.0
    window: int | None = None
    """Number of keys that a query sees, its own included."""
    chunk: int | None = None
    """Length of the chunks of positions within which tokens see each other (Llama 4)."""
    softcap: float | None = None
    """Scores z become softcap * tanh(z / softcap)."""
    sinks: Tensor | None = None
    """[H] score of a key without a value, one per query head."""

    @property
    def plain(self) -> bool:
        """Whether it is softmax attention without dropout."""
        return self.softcap is None and self.sinks is None and self.dropout == 0.0


def no_flash(form: Form, key: Tensor, value: Tensor) -> str | None:
    """Return why the flash kernel cannot compute this attention, or None if it can."""
    reason = flash.unsuitable(key.device, flash.compute_dtype(value), key.shape[3], value.shape[3])
    if reason is None and not form.plain:
        return "the flash kernel has no soft caps, no sinks and no dropout here"
    if reason is None and form.chunk is not None:
        return "the flash kernel has no chunks of positions"
    return reason


def chunk_size(module: Any) -> int | None:
    """Return the length of the chunks of an attention layer, or None if it has none."""
    config = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds or "chunked_attention" not in kinds:
        return None
    chunked = kinds[module.layer_idx] == "chunked_attention"
    return int(config.attention_chunk_size) if config is not None and chunked else None


def in_same_chunk(before: int, length: int, chunk: int, device: torch.device) -> Tensor:
    """Return whether the queries from position `before` share the keys' chunks, [S, L]."""
    chunks = torch.arange(length, device=device) // chunk
    return chunks[before:, None] == chunks


def explicit(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, form: Form) -> Tensor:
    """Return [B, H, S, D_v], with scores, caps, sinks and softmax (in fp32) written out.

    Query [B, H, S, D], key [B, H_kv, L, D], value [B, H_kv, L, D_v]; the additive mask is [S, L]
    or [B, 1, S, L].
    """
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    scaling = query.shape[3] ** -0.5 if form.scaling is None else form.scaling
    scores = query @ key.transpose(2, 3) * scaling
    if form.softcap is not None:
        scores = form.softcap * torch.tanh(scores / form.softcap)
    scores = scores + mask
    if form.sinks is not None:
        sinks = form.sinks.to(scores.dtype)[None, :, None, None]
        scores = torch.cat([scores, sinks.expand(*scores.shape[:3], 1)], dim=-1)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)[..., : key.shape[2]]
    return dropout(weights, form.dropout) @ value if form.dropout else weights @ value
