"""Keys and values of the running completions.

The cache is right-aligned: every row writes its new token into the same column, and a row's own
columns, its span, end there. A mask hides the columns before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

NARROW = 8
"""Width of a head up to which a CPU multiplies faster if the columns are contiguous."""


class Prefill:
    """Keys and values of packed prompts, [1, H_kv, T, D] by layer and pack.

    Has what transformers' models ask a cache: `update`, `get_seq_length`, `is_initialized`.
    """

    is_initialized = False

    def __init__(self) -> None:
        self.layers: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def update(
        self, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Collect a layer's keys and values of a pack, and return them."""
        key = key.to(value.dtype)  # under autocast the rotation made it fp32
        self.layers.setdefault(layer, []).append((key, value))
        return key, value

    def get_seq_length(self, layer: int = 0) -> int:
        """Return 0: a pack has no past."""
        return 0

    def take(self, layer: int) -> tuple[Tensor, Tensor]:
        """Remove and return a layer's keys and values, [H_kv, T, D] each, packs concatenated."""
        keys, values = zip(*self.layers.pop(layer))
        return torch.cat(keys, dim=2)[0], torch.cat(values, dim=2)[0]


class KVCache:
    """Keys and values by layer, [B, H_kv, capacity, D]."""

    is_initialized = True

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.columns = 0  # in use, including that of the current token
        self.capacity = 0

    def update(
        self, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the current column, [B, H_kv, 1, D], and return all columns in use."""
        keys, values = self.layers[layer]
        keys[:, :, self.columns - 1 : self.columns] = key
        values[:, :, self.columns - 1 : self.columns] = value
        return keys[:, :, : self.columns], values[:, :, : self.columns]

    def get_seq_length(self, layer: int = 0) -> int:
        """Return the number of columns in use."""
        return self.columns

    def lay_out(self, rows: Tensor, span: int, prefill: Prefill, source: Tensor, room: int) -> None:
        """Rebuild the cache: the last `span` columns of the kept `rows`, and the new prompts below.

        `source` [N, P] is the packed position of each column of the new prompts. `room` is the
        number of free columns.
        """
        width = max(span, source.shape[1])
        for layer in list(prefill.layers or self.layers):
            keys, values = [], []
            if len(rows):
                old = slice(self.columns - span, self.columns)
                keys, values = ([x[rows, :, old]] for x in self.layers[layer])
            if len(source):
                for into, packed in zip((keys, values), prefill.take(layer)):
                    into.append(packed[:, source].transpose(0, 1))
            self.layers[layer] = _stacked(keys, width, room), _stacked(values, width, room)
        self.columns, self.capacity = width, width + room

    def replace(self, rows: Tensor, prefill: Prefill, source: Tensor) -> None:
        """Write new prompts over `rows`; `source` is as in lay_out, no wider than the columns."""
        own = slice(self.columns - source.shape[1], self.columns)
        for layer in list(prefill.layers):
            for into, packed in zip(self.layers[layer], prefill.take(layer)):
                into[rows, :, own] = packed[:, source].transpose(0, 1)

    def mask(self, spans: Tensor) -> Tensor:
        """Return the mask [B, capacity], -inf for columns before the row's own, else 0."""
        columns = torch.arange(self.capacity, device=spans.device)
        hidden = columns < self.columns - spans[:, None]
        mask = torch.zeros(hidden.shape, dtype=torch.float32, device=spans.device)
        return mask.masked_fill_(hidden, -torch.inf)


def _stacked(parts: Sequence[Tensor], width: int, room: int) -> Tensor:
    """Return parts [B_i, H_kv, C_i, D] one below the other, right-aligned at column `width`.

    Columns before a part are masked but still multiplied by a weight of 0, which a NaN would
    survive, so they are set to 0. The room after it is written before it is read.
    """
    _, heads, _, size = parts[0].shape
    shape = [sum(map(len, parts)), heads, width + room, size]
    if size <= NARROW and parts[0].device.type == "cpu":
        stacked = parts[0].new_empty(*shape[:2], size, width + room).transpose(2, 3)
    else:
        stacked = parts[0].new_empty(shape)
    for part, into in zip(parts, stacked.split([len(part) for part in parts])):
        columns = part.shape[2]
        into[:, :, : width - columns] = 0
        into[:, :, width - columns : width] = part
    return stacked
