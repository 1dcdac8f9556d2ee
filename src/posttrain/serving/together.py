"""A served model that ranks split: rank 0 answers requests, the others repeat what its engine does.

Every rank has an engine in the same state. Before each step rank 0 sends what was asked of its own
since the last one; all then take the step, in which they exchange their parts of the layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch

from posttrain.model.kernels.quantized import dense
from posttrain.model.language_model import LanguageModel
from posttrain.rollout.native.engine import Engine
from posttrain.rollout.native.prefixes import PrefixCache
from posttrain.rollout.native.row import Row
from posttrain.rollout.native.sampler import NativeSampler

Call = tuple[str, Any]
"""What was asked of an engine: add rows by number, cancel one, clear or, in this state, step."""
BEAT_EVERY = 5.0
"""Seconds between two signs of life of a rank 0 that has no work."""


class Leader:
    """What rank 0 sends to the ranks that split its model."""

    def __init__(self) -> None:
        """Form a group for it, on the CPU. A collective."""
        self.group = torch.distributed.new_group(backend="gloo")
        self.calls: list[Call] = []
        self.numbers: WeakKeyDictionary[Row, int] = WeakKeyDictionary()
        self.next_number = itertools.count()

    def add(self, rows: Iterable[Row]) -> None:
        """Note that rows enter."""
        numbered = {next(self.next_number): row for row in rows}
        self.numbers.update((row, number) for number, row in numbered.items())
        # copies: a row may end before it is sent
        self.calls.append(("add", {number: copy(row) for number, row in numbered.items()}))

    def cancel(self, row: Row) -> None:
        """Note that a row is ended."""
        self.calls.append(("cancel", self.numbers[row]))

    def clear(self) -> None:
        """Note that the cache is freed."""
        self.calls.append(("clear", None))

    def step(self, engine: Engine) -> None:
        """Let the others do what was noted, and take a step. A collective."""
        self.calls.append(("step", _state(engine)))
        self.send()

    def send(self) -> None:
        """Let the others do what was noted, which may be nothing. A collective."""
        calls, self.calls = self.calls, []
        torch.distributed.broadcast_object_list([calls], src=0, group=self.group)

    def end(self) -> None:
        """Let the others end. A collective."""
        torch.distributed.broadcast_object_list([None], src=0, group=self.group)


@contextmanager
def sampling(policy: LanguageModel) -> Iterator[None]:
    """Prepare a policy for an engine's calls, and this thread for them."""
    policy.eval()
    compute = policy.autocast or torch.float32
    with torch.no_grad(), policy.precision(), dense(policy, compute):
        yield


def engine_of(
    sampler: NativeSampler, longest: int, max_cells: int | None, prefix_bytes: int
) -> Engine:
    """Return a server's engine; call it within `sampling`."""
    sampler.shares_cache(1)
    policy = sampler.policy
    prefixes = PrefixCache(prefix_bytes) if prefix_bytes and policy.edited is None else None
    return Engine(
        policy,
        sampler.max_num_seqs,
        longest,
        max_cells=max_cells,
        prefixes=prefixes,
        at_once=True,
    )


def follow(sampler: NativeSampler, longest: int, max_cells: int | None, prefix_bytes: int) -> None:
    """Do on another rank what rank 0's engine does, until that ends. A collective.

    Raises DistError if rank 0 is silent for longer than the process group waits, and RuntimeError
    if the two engines are not in the same state: their exchanges would mix up rows."""
    group = torch.distributed.new_group(backend="gloo")
    rows: dict[int, Row] = {}
    with sampling(sampler.policy):
        engine = engine_of(sampler, longest, max_cells, prefix_bytes)
        while True:
            received: list[list[Call] | None] = [None]
            torch.distributed.broadcast_object_list(received, src=0, group=group)
            if received[0] is None:
                return
            for name, what in received[0]:
                _repeat(engine, name, what, rows)
            rows = {number: row for number, row in rows.items() if row.finish_reason is None}


def _repeat(engine: Engine, name: str, what: Any, rows: dict[int, Row]) -> None:
    if name == "add":
        rows |= what
        engine.add(list(what.values()))
    elif name == "cancel":
        if what in rows:
            engine.cancel(rows[what])
    elif name == "clear":
        engine.clear()
    elif what != (here := _state(engine)):
        raise RuntimeError(f"this rank's engine has {here} rows waiting and running, not {what}")
    else:
        engine.step()
        engine.collect()


def _state(engine: Engine) -> tuple[int, int]:
    return engine.num_waiting, len(engine.running.rows)
