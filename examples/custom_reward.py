"""A reward of your own: any function of this form, in a file of your own.

    posttrain score custom rows.jsonl path=examples/custom_reward.py     # try it on rows first
    posttrain train recipes/grpo/math_outcome_cpu.yaml \\
        reward='{type: custom, path: examples/custom_reward.py}'

Every list has one entry per completion. The columns of the data row arrive under their names (here
`answer`); a column without a default must be there, and is checked before training. Return a float,
or None for "not applicable". `async def` works as well.
"""

from __future__ import annotations

import re
from typing import Any


def reward(
    prompts: list[Any],
    completions: list[str],
    completion_ids: list[list[int]],
    *,
    answer: list[str],
    **columns: list[Any],
) -> list[float | None]:
    """1 for the right number at the end, 0.1 for a wrong number, 0 for none."""
    return [judge(text, gold) for text, gold in zip(completions, answer, strict=True)]


def judge(completion: str, gold: str) -> float | None:
    """Score one completion."""
    wanted = number_in(gold)
    if wanted is None:
        return None  # an answer that is no number: this reward cannot judge it
    found = number_in(completion)
    if found is None:
        return 0.0
    return 1.0 if found == wanted else 0.1


def number_in(text: str) -> float | None:
    """Return the last number in a text."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
    return float(numbers[-1]) if numbers else None
