"""Ranks as a mesh: shares of the data, and the ranks of a share, which split one model or one row.

Rank = (share * sequence + s) * tensor + t. The ranks of a share are neighbours and train on the
same batch: `sequence` of them hold parts of each row (all weights), `tensor` of them parts of each
matrix (all rows). What a share's ranks have in common must be counted once: sums over the data go
over `gather_shares`, gradients over `replicas`, the ranks with the same part of the matrices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from posttrain.common import distributed
from posttrain.common.errors import SettingError
from posttrain.common.lazy import torch

Group = Any
"""A process group of torch."""


@dataclass(frozen=True)
class Mesh:
    """The groups of this rank; None for a group of one."""

    tensor: int = 1
    sequence: int = 1
    ranks: Any = None
    """DeviceMesh of replicate x shard x tensor ranks; None for a single process."""
    tensor_group: Group = None
    sequence_group: Group = None
    share_group: Group = None
    replicas: Group = None

    @property
    def per_share(self) -> int:
        """Number of ranks of a share."""
        return self.tensor * self.sequence


_mesh = Mesh()
_formed: tuple[Any, ...] | None = None
"""What the mesh was formed of: process group, device and sizes."""


def current() -> Mesh:
    """Return the mesh of this run."""
    return _mesh


def check(tensor: int, sequence: int, ranks: int | None = None) -> None:
    """Raise SettingError if ranks, by default those at hand, form no such shares."""
    ranks, of_share = ranks or distributed.num_ranks(), tensor * sequence
    if ranks % of_share:
        sizes = {"tensor": tensor, "sequence": sequence}
        keys = [(f"distributed.{name}_parallel", n) for name, n in sizes.items() if n > 1]
        (first, number), *others = keys
        said = " x ".join([str(number), *(f"{key}: {n}" for key, n in others)])
        raise SettingError(
            first,
            f"{said} does not divide the {ranks} rank(s): start a multiple of {of_share} ranks, or "
            "set it to 1",
        )


def arrange(device: str, tensor: int = 1, sequence: int = 1, replicate: int = 1) -> Mesh:
    """Form the mesh of a run, and return it: the one that stands, if it is the same. A collective.

    Parameters are sharded over the ranks / (replicate * tensor) ranks of a shard group, if they are
    sharded. Raise ValueError as `check` does.
    """
    global _mesh, _formed
    check(tensor, sequence)
    ranks = distributed.num_ranks()
    if ranks == 1:
        _mesh, _formed = Mesh(), None
        return _mesh
    from torch.distributed import group
    from torch.distributed.device_mesh import init_device_mesh

    formed = group.WORLD, device, tensor, sequence, replicate
    if formed == _formed:  # the same ranks, since groups are compared as objects
        return _mesh
    _formed = formed
    shape = (replicate, ranks // (replicate * tensor), tensor)
    mesh = init_device_mesh(device, shape, mesh_dim_names=("replicate", "shard", "tensor"))
    shares = (ranks // (tensor * sequence), sequence, tensor)
    parts = init_device_mesh(device, shares, mesh_dim_names=("share", "sequence", "tensor"))
    _mesh = Mesh(
        tensor,
        sequence,
        mesh,
        mesh.get_group("tensor") if tensor > 1 else None,
        parts.get_group("sequence") if sequence > 1 else None,
        parts["sequence", "tensor"]._flatten("of_share").get_group(),
        mesh["replicate", "shard"]._flatten("replicas").get_group(),
    )
    groups = (*mesh.get_all_groups(), *parts.get_all_groups(), _mesh.share_group, _mesh.replicas)
    _limit(groups, device)
    return _mesh


def _limit(groups: Iterable[Group], device: str) -> None:
    """Bound the wait in collectives of groups by the timeout with which the ranks have met.

    torch gives a group that it forms for a mesh a default: 10 minutes with NCCL, 30 with gloo.
    """
    from torch.distributed import distributed_c10d, get_backend, group

    assert group.WORLD is not None
    if get_backend() not in ("gloo", "nccl"):
        return
    wait = group.WORLD._get_backend(torch.device(device)).options._timeout
    for each in groups:
        distributed_c10d._set_pg_timeout(wait, each)


def share() -> int:
    """Return the number of this rank's share of the data."""
    return distributed.rank() // _per_share()


def num_shares() -> int:
    """Return the number of shares that the data is split into."""
    return distributed.num_ranks() // _per_share()


def leads() -> bool:
    """Whether this rank is the first of its share, which counts for all of it."""
    return distributed.rank() % _per_share() == 0


def gather_shares(value: Any) -> list[Any]:
    """Return the value of each share, a small Python object, in order. A collective."""
    return distributed.all_gather(value)[:: _per_share()]


def _per_share() -> int:
    return _mesh.per_share if distributed.num_ranks() > 1 else 1
