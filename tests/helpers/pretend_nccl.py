"""NCCL between ranks that each have a pretended GPU: backend "nccl" of torch.distributed, by gloo.

torch takes its own path for NCCL: a process group has a backend for CUDA alone, objects are sent as
CUDA tensors, and groups are split off a group that is bound to a device. So a CPU tensor in a
collective fails as with NCCL. Values travel by gloo (pretend_nccl.cpp).

What it cannot show: NCCL's order of sums, its speed and its timeouts; kernels of two groups that
wait for each other; what runs before its stream has waited. A collective is done when the call
returns or is waited for.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

TIMEOUT = timedelta(minutes=10)  # NCCL's
VERSION = (2, 28, 9)
_KEPT: list[Any] = []  # torch asks a group for its backend, and gets this object while it lives


def _copied(options: Any, memo: Any = None) -> Any:
    """A copy of gloo's options: torch copies NCCL's for a group that it splits off."""
    copy = type(options)()
    copy._devices, copy._timeout = options._devices, options._timeout
    return copy


def offer() -> None:
    """Let torch.distributed have NCCL."""
    import torch
    import torch.distributed as dist
    from torch.distributed import constants, distributed_c10d

    class ProcessGroupNCCL(dist.ProcessGroupGloo):
        """Gloo where torch expects NCCL."""

        class Options:
            """What torch sets in it."""

        def __init__(self, store: Any, rank: int, size: int, options: Any) -> None:
            super().__init__(store, rank, size, timeout=options._timeout)
            self.options.global_ranks_in_group = options.global_ranks_in_group
            self.options.group_name = options.group_name
            _KEPT.append(self)

        def perform_nocolor_split(self, device: Any) -> None:
            """What ranks outside a new group do for NCCL: gloo needs nothing of them."""

    dist.ProcessGroupGloo._Options.__deepcopy__ = _copied
    torch.cuda.nccl.version = lambda: VERSION
    distributed_c10d._NCCL_AVAILABLE = True
    distributed_c10d.ProcessGroupNCCL = dist.ProcessGroupNCCL = ProcessGroupNCCL
    distributed_c10d.default_pg_nccl_timeout = constants.default_pg_nccl_timeout = TIMEOUT
