"""How many rollout servers keep the trainers busy: a simulation of discrete events.

A step trains on a number of completions. They may be asked for as soon as the weights are at most
`max_staleness` steps old, wait in one queue, and take the slots of the servers in its order; a slot
gives its completion a fixed share of the server's tokens per second. With 0, trainers and servers
take turns.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

MOST = 1024  # servers that are tried


@dataclass(frozen=True)
class Rates:
    """What was measured of trainers and servers."""

    step_seconds: float
    """Seconds of a training step, apart from the rollouts."""
    completions: int
    """Completions of a step."""
    tokens_per_second: float
    """Of one server, with all its slots in use."""
    slots: int
    """Completions that a server works on at once."""
    max_staleness: int = 0
    """Steps by which the weights of a completion may be older than the step that it trains."""


def busy_share(rates: Rates, lengths: Sequence[int], servers: int, steps: int = 200) -> float:
    """Return the share of the time of so many steps in which the trainers train.

    `lengths` are tokens of completions, taken in turn. The time begins with the first completions,
    for which trainers always wait."""
    free = [0.0] * (servers * rates.slots)  # when each slot is free
    per_token = rates.slots / rates.tokens_per_second
    tokens = cycle(lengths)
    trained: list[float] = []  # when each step was finished
    for step in range(steps):
        version = step - rates.max_staleness - 1  # the last step whose weights it needs
        asked = trained[version] if version >= 0 else 0.0
        ready = asked
        for length in islice(tokens, rates.completions):
            end = max(heapq.heappop(free), asked) + length * per_token
            heapq.heappush(free, end)
            ready = max(ready, end)
        trained.append(max(ready, trained[-1] if trained else 0.0) + rates.step_seconds)
    return steps * rates.step_seconds / trained[-1]


def servers_for(rates: Rates, lengths: Sequence[int], share: float) -> tuple[int, float] | None:
    """Return the fewest servers that keep the trainers busy for a share of the time, and theirs.

    None if no number does."""
    low, high = 1, 1
    while busy_share(rates, lengths, high) < share:
        low, high = high + 1, high * 2
        if high > MOST:
            return None
    while low < high:
        middle = (low + high) // 2
        if busy_share(rates, lengths, middle) >= share:
            high = middle
        else:
            low = middle + 1
    return high, busy_share(rates, lengths, high)
