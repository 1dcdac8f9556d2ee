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
    lists = by_mesh(_of_norm(tensor) for tensor in tensors)
    norms = [float(full(torch.nn.utils.get_total_norm(alike))) for alike in lists]
    return norms[0] if len(norms) == 1 else math.hypot(*norms)


def _of_norm(tensor: Any) -> Any:
    """Return a tensor, or, if ranks cannot exchange it where it lies, a small one of its norm."""
    from torch.distributed.tensor import DTensor, Shard

    if not isinstance(tensor, DTensor):
        return tensor
    mesh, part = tensor.device_mesh, tensor.to_local()
    if part.device.type == mesh.device_type:
        return tensor
    norm = torch.linalg.vector_norm(part).reshape(1).to(mesh.device_type)
    places = [place if place.is_replicate() else Shard(0) for place in tensor.placements]
    return DTensor.from_local(norm, mesh, places, run_check=False)


def agree(parameters: Iterable[Tensor], group: Any) -> None:
    """Give the ranks of a tensor group the first one's gradients of what each holds whole.

    Each has computed them from the same numbers. Kernels that are not deterministic, as some of a
    GPU are, would let the ranks' weights drift apart, which no loss would show. A collective.
    """
    grads = [p.grad for p in parameters if p.grad is not None and not _is_cut(p)]
    if group is None or not grads:
        return
    own = [grad.to_local() if hasattr(grad, "to_local") else grad for grad in grads]
    flat = torch.cat([reachable(grad).reshape(-1) for grad in grads])
    torch.distributed.broadcast(flat, group=group, group_src=0)
    for grad, same in zip(own, flat.split([grad.numel() for grad in own])):
        grad.copy_(same.view_as(grad))


def _is_cut(tensor: Any) -> bool:
    """Whether the ranks of a tensor group hold parts of a tensor."""
    found = getattr(tensor, "device_mesh", None)
    return found is not None and "tensor" in found.mesh_dim_names


def full(tensor: Tensor) -> Tensor:
    """Return the whole tensor of a shard, or a plain tensor as it is. A collective for shards.

    Shards in the CPU's memory are gathered on the device of their ranks."""
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor
    near: Any = tensor.to(tensor.device_mesh.device_type)
    whole: Tensor = near.full_tensor()
    return whole


def reachable(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, on the device from which ranks exchange it."""
    found: Any = tensor
    if not hasattr(found, "to_local"):
        return tensor
    part: Tensor = found.to_local()
    return part.to(found.device_mesh.device_type)


def copy_full(tensor: Tensor, value: Tensor) -> None:
    """Write a whole value into a tensor, or this rank's part of it into its shard."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(tensor, DTensor):
        value = distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
    with torch.no_grad():
        tensor.copy_(value)
