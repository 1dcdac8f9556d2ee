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
