"""What a rank says when the others no longer answer: who is missing, since which step."""

from __future__ import annotations

import re
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from posttrain.common import distributed
from posttrain.common.telling import tell, told

COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "broadcast",
    "from_rank_0",
    "barrier",
    "all_to_all_single",
    "full_tensor",
)
"""Functions that wait for other ranks, as a traceback names them."""
OF_GLOO = re.compile(r"gloo|Connection (closed|reset) by peer|Timed out waiting \d+ms", re.I)
OTHERS_HAVE = 3.0  # seconds, after a failure, to tell that they wait as well


class LostRank(ValueError):
    """Other ranks no longer answer; the last checkpoint is not affected."""


@contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Turn what a collective raises if other ranks are gone, or stuck, into one line about them.

    Raise LostRank instead of the error.
    """
    try:
        yield
    except RuntimeError as error:
        if distributed.num_ranks() == 1 or not is_of_others(error):
            raise
        where = collective_in(error)
        raise LostRank(
            f"rank {distributed.rank()} ({socket.gethostname()}): the other ranks did not answer "
            f"in {where}; {silent_ranks(where)}"
        ) from error


def is_of_others(error: RuntimeError) -> bool:
    """Return whether an error says that other ranks, or the store, do not answer."""
    return isinstance(error, torch.distributed.DistError) or bool(OF_GLOO.search(str(error)))


def collective_in(error: RuntimeError) -> str:
    """Return the name of the collective that raised an error, or of what else waits for others."""
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    if "tell" in names:
        return "the report of a step"
    return next((name for name in names if name in COLLECTIVES), "the backward pass")


def silent_ranks(where: str) -> str:
    """Return which ranks do not tell that they wait as well, and the last step of each."""
    told_by: dict[int, dict[str, Any] | None] = {}
    # beyond a broken network, a question to the store is never answered
    asking = threading.Thread(target=_ask, args=(where, told_by), daemon=True)
    asking.start()
    asking.join(2 * OTHERS_HAVE)
    if asking.is_alive() or not told_by:
        return "the process at which all ranks meet, on the machine of rank 0, is out of reach"
    silent = {rank: said for rank, said in told_by.items() if said is None or "step" in said}
    if not silent:
        return "all of them wait for one another: they run different collectives"
    return "; ".join(
        f"rank {rank} is silent and has finished no step"
        if said is None
        else f"rank {rank} ({said['host']}) is silent: it finished step {said['step']} "
        f"{max(0.0, time.time() - said['time']):.0f} s ago"
        for rank, said in silent.items()
    )


def _ask(where: str, told_by: dict[int, dict[str, Any] | None]) -> None:
    """Fill in what each other rank told: that it waits, or else its last step."""
    others = [rank for rank in range(distributed.num_ranks()) if rank != distributed.rank()]
    begun = time.monotonic()
    try:
        tell("waiting", {"in": where})
        waiting = {rank: told("waiting", rank) for rank in others}
        while None in waiting.values() and time.monotonic() - begun < OTHERS_HAVE:
            time.sleep(0.1)
            waiting = {rank: said or told("waiting", rank) for rank, said in waiting.items()}
        told_by.update({rank: waiting[rank] or told("finished", rank) for rank in others})
    except (RuntimeError, OSError):
        return  # the store has ended with the process that holds it
