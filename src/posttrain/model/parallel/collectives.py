"""Exchanges between the ranks of a group that gradients pass through.

Every rank computes the same loss, from values that are equal on all ranks of the group. The
gradient of such a value is then equal on all of them too, and is not summed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup


def summed(x: Tensor, group: ProcessGroup) -> Tensor:
    """Return the sum of the ranks' x; the gradient of each is that of the sum."""
    total: Tensor = _Sum.apply(x, group)  # type: ignore[no-untyped-call]
    return total


def spread(x: Tensor, group: ProcessGroup) -> Tensor:
    """Return x, of which every rank uses a part: its gradient is the sum of theirs."""
    same: Tensor = _Spread.apply(x, group)  # type: ignore[no-untyped-call]
    return same


def gathered(x: Tensor, group: ProcessGroup) -> Tensor:
    """Return the ranks' x [..., n] beside each other, [..., ranks * n]."""
    whole: Tensor = _Gather.apply(x, group)  # type: ignore[no-untyped-call]
    return whole


def own_part(x: Tensor, group: ProcessGroup) -> Tensor:
    """Return this rank's part [..., n / ranks] of x [..., n], which is equal on all ranks."""
    part: Tensor = _Part.apply(x, group)  # type: ignore[no-untyped-call]
    return part


def to_heads(x: Tensor, sizes: list[int], group: ProcessGroup) -> Tensor:
    """Return all tokens of this rank's heads, [H / ranks, U, D], from all heads of its own tokens.

    x is [H, own, D]; `sizes` are the tokens of each rank, U in all.
    """
    heads: Tensor = _Exchange.apply(x, sizes, True, group)  # type: ignore[no-untyped-call]
    return heads


def to_rows(x: Tensor, sizes: list[int], group: ProcessGroup) -> Tensor:
    """Return all heads of this rank's tokens, [H, own, D]: the inverse of `to_heads`."""
    rows: Tensor = _Exchange.apply(x, sizes, False, group)  # type: ignore[no-untyped-call]
    return rows


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        total = x.contiguous().clone()
        torch.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        total = grads[0].contiguous().clone()
        torch.distributed.all_reduce(total, group=ctx.group)
        return total, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_gather(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _part(grads[0], ctx.group), None


class _Part(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _part(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _all_gather(grads[0], ctx.group), None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int], heads: bool, group: ProcessGroup) -> Tensor:
        ctx.sizes, ctx.heads, ctx.group = sizes, heads, group
        return (_to_heads if heads else _to_rows)(x, sizes, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        back = _to_rows if ctx.heads else _to_heads
        return back(grads[0], ctx.sizes, ctx.group), None, None, None


def _all_gather(x: Tensor, group: ProcessGroup) -> Tensor:
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(group.size())]
    torch.distributed.all_gather(parts, x, group=group)
    return torch.cat(parts, dim=-1)


def _part(x: Tensor, group: ProcessGroup) -> Tensor:
    return x.chunk(group.size(), dim=-1)[group.rank()].contiguous()


def _to_heads(x: Tensor, sizes: list[int], group: ProcessGroup) -> Tensor:
    (heads, own, width), ranks = x.shape, group.size()
    one = heads // ranks * width  # numbers of one token for one rank
    received = x.new_empty(sum(sizes) * one)
    lengths = [size * one for size in sizes]
    torch.distributed.all_to_all_single(
        received, x.reshape(-1), lengths, [own * one] * ranks, group=group
    )
    parts = zip(received.split(lengths), sizes)
    return torch.cat([part.view(heads // ranks, size, width) for part, size in parts], dim=1)


def _to_rows(x: Tensor, sizes: list[int], group: ProcessGroup) -> Tensor:
    (heads, _, width), ranks, own = x.shape, group.size(), sizes[group.rank()]
    one = heads * width
    sent = torch.cat([part.reshape(-1) for part in x.split(sizes, dim=1)])
    received = x.new_empty(ranks * own * one)
    lengths = [size * one for size in sizes]
    torch.distributed.all_to_all_single(received, sent, [own * one] * ranks, lengths, group=group)
    return received.view(ranks * heads, own, width)
