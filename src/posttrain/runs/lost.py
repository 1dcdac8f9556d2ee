"""What a rank says when the others no longer answer: who is missing, since which step."""

from __future__ import annotations

import re
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
NO_STORE = "the process at which all ranks meet, on the machine of rank 0, is out of reach"
OTHERS_HAVE = 3.0  # seconds, after a failure, to tell that they wait as well
BEAT_EVERY = 2.0  # seconds
LONGEST = 400  # characters of what a rank tells of its failure


class LostRank(ValueError):
    """Other ranks no longer answer; the last checkpoint is not affected."""


@contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Turn what a collective raises if other ranks are gone, or stuck, into one line about them.

    Raise LostRank instead of the error. An error of this rank's own is told to the others.
    """
    try:
        yield
    except Exception as error:
        if distributed.num_ranks() == 1 or isinstance(error, LostRank):
            raise
        if not isinstance(error, RuntimeError) or not is_of_others(error):
            tell_failure(error)
            raise
        where = collective_in(error)
        raise LostRank(
            f"rank {distributed.rank()} ({socket.gethostname()}): the other ranks did not answer "
            f"in {where}; {silent_ranks(where)}"
        ) from error


def tell_failure(error: Exception) -> None:
    """Tell the other ranks why this one ends, if they can still be told."""
    words = " ".join(str(error).split())[:LONGEST] or type(error).__name__

    def try_to_tell() -> None:
        with suppress(RuntimeError, OSError):  # the store has ended with the process that holds it
            tell("failed", {"why": words})

    telling = threading.Thread(target=try_to_tell, daemon=True)
    telling.start()
    telling.join(OTHERS_HAVE)


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
        return NO_STORE
    silent = {rank: said for rank, said in told_by.items() if said is None or "in" not in said}
    if not silent:
        return "all of them wait for one another: they run different collectives"
    return "; ".join(
        f"rank {rank} is silent and has finished nothing yet"
        if said is None
        else f"rank {rank} ({said['host']}) {last_heard(said)}"
        for rank, said in silent.items()
    )


def last_heard(said: dict[str, Any]) -> str:
    """Return what became of a rank that told why it failed, or what it has finished."""
    if "why" in said:
        return f"has failed: {said['why']}"
    did = said["what"] if "what" in said else f"step {said['step']}"
    return f"is silent: it finished {did} {max(0.0, time.time() - said['time']):.0f} s ago"


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
        for rank in others:
            told_by[rank] = waiting[rank] or told("failed", rank) or told("finished", rank)
    except (RuntimeError, OSError):
        return  # the store has ended with the process that holds it


@contextmanager
def telling_alive(timeout: float) -> Iterator[Callable[[], None]]:
    """Tell the other ranks that this one lives; yield the check that they do, to call at times.

    For ranks that wait for files of one another, without a collective that has a time limit. The
    check raises LostRank once another rank has told nothing for `timeout` seconds.
    """
    begun = time.monotonic()
    others = [rank for rank in range(distributed.num_ranks()) if rank != distributed.rank()]
    heard = dict.fromkeys(others, begun)
    said: dict[int, dict[str, Any]] = {}
    answered = [begun]
    ended = threading.Event()

    def listen() -> None:
        # in a thread, since a question to a store that is stopped is never answered
        while not ended.wait(BEAT_EVERY):
            try:
                tell("alive", {})
                for rank in others:
                    now = told("alive", rank)
                    if now is not None and now != said.get(rank):
                        heard[rank], said[rank] = time.monotonic(), now
            except (RuntimeError, OSError):
                answered[0] = float("-inf")
                return
            answered[0] = time.monotonic()

    def check() -> None:
        if not others:
            return
        now, own = time.monotonic(), f"rank {distributed.rank()} ({socket.gethostname()})"
        if now - answered[0] > timeout:
            raise LostRank(f"{own}: {NO_STORE}")
        for rank in others:
            if now - heard[rank] > timeout:
                where = f" ({said[rank]['host']})" if rank in said else ""
                raise LostRank(
                    f"{own}: rank {rank}{where} has been silent for {timeout:g} s: the same call "
                    "makes what it has not written"
                )

    thread = threading.Thread(target=listen, daemon=True)
    if others:
        thread.start()
    try:
        yield check
    finally:
        ended.set()
        if others:
            thread.join(OTHERS_HAVE)
