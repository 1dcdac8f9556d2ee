"""The answer that a completion states, right or wrong: for majority votes and strict accuracy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.rewards.rules import math
from posttrain.rewards.rules.classification import label_pattern, stated

UNREAD = ("unparseable_prediction", "no_answer", "no_label", "ambiguous", "no_code")
"""Verdicts on completions in which the reward found no answer, or more than one."""


@dataclass(frozen=True)
class Reader:
    """How to read the answers of a task."""

    vote: Callable[[str], str | None]
    """Return a completion's answer, the same text for equal answers; None if it has none."""
    in_format: Callable[[str], bool]
    """Return whether a completion has its answer in the form that was asked for."""


def reader_of(reward: dict[str, Any]) -> Reader | None:
    """Return the reader for a reward section; None if completions state no answer (programs)."""
    if reward["type"] == "math_correctness":
        return Reader(math_answer, lambda text: math.formatted_answer(text) is not None)
    if reward["type"] == "classification":
        pattern = label_pattern(reward["labels"])

        def vote(text: str) -> str | None:
            labels = stated(text, pattern)
            return labels.pop() if len(labels) == 1 else None

        return Reader(vote, lambda text: pattern.fullmatch(bare(text)) is not None)
    return None


def math_answer(completion: str) -> str | None:
    """Return the final answer as the reward reads it, a number as an exact fraction.

    1/2 and 0.5 are the same answer. Formulas are the same only if they are written alike, except
    for spaces: x+1 and 1+x are two answers. None for a completion without an answer.
    """
    found = math.stated_answer(completion)
    number = math.stated_number(found)
    if number is None and not found.marked:
        return None
    if number is not None:
        return f"{number.value}{'%' if number.percent else ''}"
    return re.sub(r"\s+", "", found.text).strip("$") or None


def bare(text: str) -> str:
    """Return the text without surrounding spaces, quotation marks, emphasis and full stops."""
    return text.strip(" \t\n\"'`*_.")


def majority(votes: Sequence[str | None]) -> int | None:
    """Return the index of the first completion with the most frequent answer; None without answers.

    Of equally frequent answers, the one that was given first wins.
    """
    counts = Counter(vote for vote in votes if vote is not None)
    # most_common orders equal counts by first appearance
    return votes.index(counts.most_common(1)[0][0]) if counts else None
