"""Sequence parallelism: each rank holds all weights and its part of the tokens of every row.

Norms, projections, feed-forward layers and the output head work on a rank's own tokens. Attention
needs whole rows: before it, ranks exchange their tokens of all heads for all tokens of their heads,
and back after it (DeepSpeed-Ulysses, Jacobs et al. 2023, arXiv 2309.14509, sec. 3). Log-probs are
then put together on all ranks, which compute the same loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from posttrain.model.parallel.collectives import summed, to_heads, to_rows
from posttrain.model.shared_prompts import Rows


@dataclass(frozen=True)
class Part:
    """This rank's part of U tokens: those from `first` to before `end`."""

    sizes: list[int]  # tokens of each rank, U in all
    group: ProcessGroup

    @property
    def first(self) -> int:
        """Index of the first token."""
        return sum(self.sizes[: self.group.rank()])

    @property
    def end(self) -> int:
        """Index of the token after the last one."""
        return self.first + self.sizes[self.group.rank()]

    def has(self, places: Tensor) -> Tensor:
        """Return which of these tokens of the U are this rank's."""
        return (places >= self.first) & (places < self.end)

    def whole(self, values: Tensor) -> Tensor:
        """Return [U, ...] on all ranks from each one's values of its own tokens."""
        total = sum(self.sizes)
        zeros = values.new_zeros(total, *values.shape[1:])
        own = torch.arange(self.first, self.end, device=values.device)
        return summed(zeros.index_copy(0, own, values), self.group)

    def each(
        self, compute: Callable[[Tensor, Tensor], tuple[Tensor, ...]], places: Tensor, ids: Tensor
    ) -> tuple[Tensor, ...]:
        """Return compute(places, ids), [M] each, with every rank doing those of its own tokens."""
        own = self.has(places).nonzero()[:, 0]
        results = compute(places[own] - self.first, ids[own])
        zeros = (x.new_zeros(len(places)) for x in results)
        return tuple(
            summed(zero.index_copy(0, own, x), self.group) for zero, x in zip(zeros, results)
        )

    def to_heads(self, x: Tensor) -> Tensor:
        """Return all tokens of this rank's heads, [1, H / ranks, U, D], from [1, H, own, D].

        If keys and values have fewer heads than there are ranks, several ranks get the same one."""
        ranks = self.group.size()
        if x.shape[1] < ranks:
            x = x.repeat_interleave(ranks // x.shape[1], dim=1)
        return to_heads(x[0], self.sizes, self.group)[None]

    def to_rows(self, x: Tensor) -> Tensor:
        """Return all heads of this rank's tokens, [1, own, H, D], from [1, U, H / ranks, D]."""
        return to_rows(x[0].transpose(0, 1), self.sizes, self.group).transpose(0, 1)[None]

    def heads_of(self, x: Tensor) -> Tensor:
        """Return the values of this rank's heads from those of all, [H]."""
        return x.chunk(self.group.size())[self.group.rank()]


def part_of(rows: Rows, group: ProcessGroup) -> Rows:
    """Return the rows with only this rank's tokens to run; layout and places are still of all."""
    ranks, total = group.size(), len(rows.input_ids)
    part = Part([len(x) for x in torch.arange(total).tensor_split(ranks)], group)
    own = slice(part.first, part.end)
    layout = replace(rows.layout, part=part)
    if layout.edited is not None:
        starts, ends = (places[part.has(places)] - part.first for places in layout.edited)
        layout.edited = starts, ends
    return replace(
        rows, input_ids=rows.input_ids[own], position_ids=rows.position_ids[own], layout=layout
    )
