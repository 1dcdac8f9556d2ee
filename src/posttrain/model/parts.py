"""Tensors of which each rank holds a part: where the parts lie, and one tensor put together.

A part is a box in the whole tensor, as DTensor describes it, whatever the mesh and its placements:
rows of FSDP, rows or columns of tensor parallelism, both at once, or the whole tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.common import distributed
from posttrain.common.shards import reachable


@dataclass(frozen=True)
class Part:
    """A box in a tensor: its first element in each dimension, and its shape."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def is_empty(self) -> bool:
        """Whether it has no element."""
        return 0 in self.shape

    @property
    def box(self) -> tuple[slice, ...]:
        """The slices that cut it out of the tensor."""
        return tuple(slice(o, o + n) for o, n in zip(self.offset, self.shape))

    def within(self, other: Part) -> Part:
        """Return what it has in common with another part of the tensor; it may be empty."""
        offset = tuple(max(a, b) for a, b in zip(self.offset, other.offset))
        ends = [
            min(a + n, b + m)
            for a, n, b, m in zip(self.offset, self.shape, other.offset, other.shape)
        ]
        return Part(offset, tuple(max(0, end - o) for o, end in zip(offset, ends)))

    def seen_from(self, other: Part) -> Part:
        """Return the same box with offsets from the first element of another part."""
        return Part(tuple(a - b for a, b in zip(self.offset, other.offset)), self.shape)


def whole(shape: torch.Size | tuple[int, ...]) -> Part:
    """Return the part that is the whole tensor."""
    return Part((0,) * len(shape), tuple(shape))


def part_of(tensor: Tensor) -> Part:
    """Return which part of a tensor this rank holds."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not isinstance(tensor, DTensor):
        return whole(tensor.shape)
    shape, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    held = tuple(tensor.to_local().shape)
    assert held == tuple(shape), f"a rank holds {held} of a tensor where DTensor says {shape}"
    return Part(tuple(offset), tuple(shape))


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor; writing into it changes the tensor."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def places(tensors: Mapping[str, Tensor]) -> dict[str, list[Part]]:
    """Return the part of each tensor that each rank holds, in rank order. A collective."""
    by_rank = distributed.all_gather({name: part_of(tensor) for name, tensor in tensors.items()})
    return {name: [parts[name] for parts in by_rank] for name in tensors}


def holders(parts: list[Part], preferred: int = 0) -> dict[int, Part]:
    """Return ranks that together hold a tensor, each part once: the preferred rank's own first."""
    chosen: dict[Part, int] = {} if parts[preferred].is_empty else {parts[preferred]: preferred}
    for rank, part in enumerate(parts):
        if not part.is_empty:
            chosen.setdefault(part, rank)
    return {rank: part for part, rank in chosen.items()}


def gather(tensor: Tensor, parts: list[Part], owner: int) -> Tensor | None:
    """Return the whole tensor on the CPU of rank `owner`, None on the others. A collective.

    `parts` are those of all ranks. Each part is sent once, and to the owner alone.
    """
    rank, mine = distributed.rank(), reachable(tensor.detach())
    senders = holders(parts, owner)
    if rank != owner:
        if rank in senders:
            torch.distributed.send(mine.contiguous(), owner)
        return None
    if senders == {owner: whole(tensor.shape)} or mine.shape == tensor.shape:
        return mine.cpu()
    joined = torch.empty(tensor.shape, dtype=tensor.dtype)
    for sender, part in senders.items():
        if sender == owner:
            received = mine
        else:
            received = torch.empty(part.shape, dtype=tensor.dtype, device=mine.device)
            torch.distributed.recv(received, sender)
        joined[part.box].copy_(received)
    return joined
