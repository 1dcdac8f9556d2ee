"""Tensors of which ranks hold shards, beside plain ones: whole values, norms, lists by mesh."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from posttrain.common.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def by_mesh(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return tensors in lists of those that operators take together: plain ones, or of one mesh."""
    lists: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        lists.setdefault(getattr(tensor, "device_mesh", None), []).append(tensor)
    return list(lists.values())


def total_norm(tensors: Iterable[Tensor]) -> float:
    """Return the 2-norm of all numbers of tensors and shards. A collective for shards."""
    norms = [float(full(torch.nn.utils.get_total_norm(alike))) for alike in by_mesh(tensors)]
    return norms[0] if len(norms) == 1 else math.hypot(*norms)


def agree(parameters: Iterable[Tensor], group: Any) -> None:
    """Give the ranks of a tensor group the first one's gradients of what each holds whole.

    Each has computed them from the same numbers. Kernels that are not deterministic, as some of a
    GPU are, would let the ranks' weights drift apart, which no loss would show. A collective.
    """
    grads = [p.grad for p in parameters if p.grad is not None and not _is_cut(p)]
    if group is None or not grads:
        return
    own = [grad.to_local() if hasattr(grad, "to_local") else grad for grad in grads]
    flat = torch.cat([grad.reshape(-1) for grad in own])
    torch.distributed.broadcast(flat, group=group, group_src=0)
    for grad, same in zip(own, flat.split([grad.numel() for grad in own])):
        grad.copy_(same.view_as(grad))


def _is_cut(tensor: Any) -> bool:
    """Whether the ranks of a tensor group hold parts of a tensor."""
    found = getattr(tensor, "device_mesh", None)
    return found is not None and "tensor" in found.mesh_dim_names


def full(tensor: Tensor) -> Tensor:
    """Return the whole tensor of a shard, or a plain tensor as it is. A collective for shards."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copy_full(tensor: Tensor, value: Tensor) -> None:
    """Write a whole value into a tensor, or this rank's part of it into its shard."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(tensor, DTensor):
        value = distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
    with torch.no_grad():
        tensor.copy_(value)
