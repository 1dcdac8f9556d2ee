"""What a completion answers, whatever is right: for majority votes, and for strict scores."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.rewards.rules import math
from posttrain.rewards.rules.classification import label_pattern, stated

UNREAD = ("unparseable_prediction", "no_answer", "no_label", "ambiguous", "no_code")
"""Verdicts on a completion in which the reward found no one answer."""


@dataclass(frozen=True)
class Reader:
    """How the answers of a task are read."""

    vote: Callable[[str], str | None]
    """What counts as the same answer has the same text; None for a completion without one."""
    in_format: Callable[[str], bool]
    """Whether a completion has its answer in the form that is asked for."""


def reader_of(reward: dict[str, Any]) -> Reader | None:
    """Of a reward's settings; None where completions state no answer, as programs do not."""
    if reward["type"] == "math_correctness":
        return Reader(math_answer, lambda text: math.formatted_answer(text) is not None)
    if reward["type"] == "classification":
        pattern = label_pattern(reward["labels"])

        def vote(text: str) -> str | None:
            found = stated(text, pattern)
            return found.pop() if len(found) == 1 else None

        return Reader(vote, lambda text: pattern.fullmatch(bare(text)) is not None)
    return None


def math_answer(completion: str) -> str | None:
    """The final answer, a number as an exact fraction, as the reward reads it. Formulas are one
    answer where they are written alike but for spaces: 1/2 and 0.5 are, x+1 and 1+x are not."""
    answer, marked = math.final_answer(completion)
    number = math.plain_number(answer)
    if number is None and not marked:
        number = math.last_number(answer)
        if number is None:
            return None
    if number is not None:
        return f"{number.value}{'%' if number.percent else ''}"
    return re.sub(r"\s+", "", answer).strip("$") or None


def bare(text: str) -> str:
    """Without the spaces, marks and full stop around it."""
    return text.strip(" \t\n\"'`*_.")


def majority(votes: Sequence[str | None]) -> int | None:
    """The place of the first completion with the answer that most of them give; of answers given
    equally often the one that was given first. None where no completion has an answer."""
    counts = Counter(vote for vote in votes if vote is not None)
    # most_common keeps the order of the first appearance among equals
    return votes.index(counts.most_common(1)[0][0]) if counts else None
