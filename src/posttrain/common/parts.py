"""Where to cut a batch into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """The sequences that stay together, such as the two of a pair, in tokens."""

    tokens: int
    """That run: prompts which neighbours share count once."""
    whole: int
    """With the prompts that they share."""
    again: int
    """Of a prompt that is shared with the group before, and runs again behind a cut."""


def cut(groups: Sequence[Group], most: int, workers: int = 1) -> list[int]:
    """Return the first group of each part of at most `most` tokens; a larger group is one alone.

    Attention holds the keys and values of a shared prompt once for each sequence: with prompts
    counted that often, the limit is 4 * `most`. For `workers` that run at the same time, `most` is
    for all of them together, and the parts are as equal as their order allows. Their number is a
    multiple of that of the workers, fewer of which work if a group needs more than its share.
    """
    largest = max((group.tokens + group.again for group in groups), default=0)
    workers = max(1, min(workers, len(groups), most // max(largest, 1)))
    starts = _starts(groups, most // workers)
    if workers == 1:
        return starts
    number = -(-len(starts) // workers) * workers
    low, high = 1, most // workers
    while low < high:
        middle = (low + high) // 2
        fits = len(_starts(groups, middle)) <= number
        low, high = (low, middle) if fits else (middle + 1, high)
    return _starts(groups, high)


def _starts(groups: Sequence[Group], most: int) -> list[int]:
    starts: list[int] = []
    tokens = whole = 0
    for place, group in enumerate(groups):
        full = tokens + group.tokens > most or whole + group.whole > 4 * most
        if not starts or full:
            starts.append(place)
            tokens, whole = group.again, 0
        tokens += group.tokens
        whole += group.whole
    return starts
