"""Rotations that depend on the length of a row, for rows of many lengths in one pass.

transformers takes the frequencies of all rows from the longest (dynamic, longrope). Here each row
has those that it has alone: the architecture's own module is called for one length at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.model.quirks import LENGTH_DEPENDENT, changes_with_every_length

Turn = Tensor | tuple[Tensor, ...]
"""What a module of rotations returns: cosines and sines, or complex numbers, [B, S, width]."""


def rotating(backbone: nn.Module) -> list[Any]:
    """Return the modules whose rotations depend on the length."""
    found: list[Any] = []
    for module in backbone.modules():
        kinds: Any = getattr(module, "rope_type", "")
        kinds = list(kinds.values()) if isinstance(kinds, dict) else [kinds]
        if any(name in str(kind) for kind in kinds for name in LENGTH_DEPENDENT):
            found.append(module)
    return found


@contextmanager
def rotated_by_row(backbone: nn.Module, limit: int, longest: int) -> Iterator[None]:
    """Rotate each row as if it were alone, inside a with block.

    Up to `limit` tokens no rotation depends on the length, and no row is longer than `longest`.
    Passes have rows that are packed end to end, [1, T], or one token of each row, [B, 1].
    """
    modules = rotating(backbone)
    for module in modules:
        module.forward = _by_row(module, limit, longest)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _by_row(module: Any, limit: int, longest: int) -> Callable[..., Turn]:
    """Return the function that takes the place of a module's."""
    plain: Callable[..., Turn] = module.forward
    # layers of several kinds may change at several lengths
    every_length = changes_with_every_length(module.config) or isinstance(module.rope_type, dict)
    tables: dict[tuple[Any, ...], Turn] = {}

    def turn(x: Tensor, first: int, end: int, layer: tuple[Any, ...]) -> Turn:
        """Return the rotations of positions `first` to `end` in a row of `end` tokens."""
        key = (first, end, x.dtype, *layer)
        if key not in tables:
            like, places = x[:1, :1], torch.arange(first, end, device=x.device)[None]
            plain(like, torch.zeros_like(places[:, :1]), *layer)  # dynamic ones remember lengths
            tables[key] = plain(like, places, *layer)
        return tables[key]

    def of_row(x: Tensor, length: int, layer: tuple[Any, ...]) -> Turn:
        """Return the rotations of a row of this length."""
        if length <= limit:
            return _each(lambda t: t[:, :length], turn(x, 0, limit, layer))
        if every_length:
            return turn(x, 0, length, layer)
        return _each(lambda t: t[:, :length], turn(x, 0, longest, layer))

    def newest(x: Tensor, layer: tuple[Any, ...]) -> Turn:
        """Return the rotation of every position as the last of its row, [1, longest, width]."""
        key = ("newest", x.dtype, *layer)
        if key not in tables:
            parts = [turn(x, 0, min(limit, longest), layer)]
            step = 1 if every_length else max(1, longest - limit)
            for first in range(limit, longest, step):
                parts.append(turn(x, first, first + step, layer))
            tables[key] = _together(parts)
        return tables[key]

    def forward(x: Tensor, position_ids: Tensor, *layer: Any, **keys: Any) -> Turn:
        layer = (*layer, *keys.values())  # the kind of layer, if each has rotations of its own
        if position_ids.shape[1] == 1:
            return _each(lambda t: t[0][position_ids], newest(x, layer))
        assert position_ids.shape[0] == 1, "several rows of several tokens"
        assert position_ids[0, 0] == 0, "rows that are not whole"
        starts = [*(position_ids[0] == 0).nonzero()[:, 0].tolist(), position_ids.shape[1]]
        lengths = [end - start for start, end in pairwise(starts)]
        return _together([of_row(x, length, layer) for length in lengths])

    return forward


def _each(change: Callable[[Tensor], Tensor], turn: Turn) -> Turn:
    return change(turn) if isinstance(turn, Tensor) else tuple(map(change, turn))


def _together(turns: list[Turn]) -> Turn:
    """Return rotations [1, S_i, width] end to end."""
    if isinstance(turns[0], Tensor):
        return torch.cat(turns, dim=1)  # type: ignore[arg-type]
    return tuple(torch.cat(parts, dim=1) for parts in zip(*turns))
