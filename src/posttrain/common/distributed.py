"""Ranks: their process group, what they tell each other, and sums of their gradients.

torchrun starts the ranks. A single process is one rank, on the same code path.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from posttrain.common.lazy import torch

if TYPE_CHECKING:
    from torch import nn

TIMEOUT = 300.0  # seconds
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that torchrun sets for each rank."""


def start(device: str, timeout: float = TIMEOUT) -> None:
    """Join the process group if torchrun started this process; raise ValueError if it cannot.

    `timeout` bounds, in seconds, the wait for other ranks, here and in every later collective.
    """
    if "RANK" not in os.environ or torch.distributed.is_initialized():
        return
    if missing := [name for name in VARIABLES if name not in os.environ]:
        raise ValueError(
            f"RANK is set, but {', '.join(missing)} not: start all ranks with posttrain launch or "
            "torchrun, or unset RANK for a single process"
        )
    on_cuda = device != "cpu" and torch.cuda.is_available()
    if on_cuda:
        if (local := int(os.environ["LOCAL_RANK"])) >= (number := torch.cuda.device_count()):
            raise ValueError(f"rank {local} of this machine has no GPU: torch sees {number}")
        torch.cuda.set_device(local)
    from torch.distributed.rendezvous import rendezvous

    wait = timedelta(seconds=timeout)
    # after a restart, torchrun's store still has the addresses at which dead ranks were listening
    attempt = f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        store, own_rank, ranks = next(rendezvous("env://", timeout=wait))
        torch.distributed.init_process_group(
            "nccl" if on_cuda else "gloo",
            store=torch.distributed.distributed_c10d.PrefixStore(attempt, store),
            rank=own_rank,
            world_size=ranks,
            timeout=wait,
            device_id=torch.device("cuda", local) if on_cuda else None,
        )
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].partition("Exception raised from")[0]
        own, _, ranks_in_all, host, port = (os.environ[name] for name in VARIABLES)
        raise ValueError(
            f"rank {own} of {ranks_in_all} did not meet the others at {host}:{port} within "
            f"{timeout:g} s: start all of them with the address of rank 0's machine and a port "
            f"that is free there and reachable ({reason[:200]})"
        ) from None


def stop() -> None:
    """Leave the process group, if there is one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def leave(code: int = 0) -> None:
    """Exit with a status and skip Python's finalization, for a rank whose work is done.

    gloo's threads outlive the process group if DTensor's caches hold it. A thread that drops its
    last tensor while the interpreter shuts down cannot take the interpreter's lock and aborts the
    process: a finished run then fails with "terminate called without an active exception", more
    often on a busy machine.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def rank() -> int:
    """Return the rank of this process."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def num_ranks() -> int:
    """Return the number of ranks."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def all_gather(value: Any) -> list[Any]:
    """Return the values of all ranks, small Python objects, in rank order."""
    if num_ranks() == 1:
        return [value]
    values: list[Any] = [None] * num_ranks()
    torch.distributed.all_gather_object(values, value)
    return values


def from_rank_0(value: Any) -> Any:
    """Return the value that rank 0 passes, on all ranks."""
    values = [value]
    if num_ranks() > 1:
        torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def barrier() -> None:
    """Wait until all ranks are here."""
    if num_ranks() > 1:
        torch.distributed.barrier()


def is_sharded(policy: nn.Module) -> bool:
    """Return whether the policy is sharded over the ranks."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(policy, FSDPModule)


def sum_gradients(parameters: Iterable[nn.Parameter], sharded: bool, group: Any = None) -> None:
    """Sum the gradients of parameters over the ranks that hold the same ones, in one all-reduce.

    `group` is those ranks, by default all. Call it once per optimiser step. The backward pass has
    summed those of parameters that FSDP has sharded.
    """
    if num_ranks() == 1 or sharded:
        return
    # a rank whose micro-batches were all skipped has no gradient; it must still take part
    grads = []
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        grads.append(getattr(p.grad, "_local_tensor", p.grad))
    flat = torch.cat([g.flatten() for g in grads])
    torch.distributed.all_reduce(flat, group=group)
    for grad, total in zip(grads, flat.split([g.numel() for g in grads])):
        grad.copy_(total.view_as(grad))
