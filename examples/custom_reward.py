"""A custom reward: any function with this signature, in a file of your own.

    posttrain score custom rows.jsonl path=examples/custom_reward.py     # try it on rows first
    posttrain train recipes/grpo/math_outcome_cpu.yaml \\
        reward='{type: custom, path: examples/custom_reward.py}'

Every list has one entry per completion. The columns of the data rows are passed by name (here
`answer`); a column without a default is required, and the rows are checked for it before training.
Return a float for each completion, or None for "not applicable". `async def` works too. A `Score`
is a float with a verdict: completions with the verdict "correct" count in eval_accuracy, where a
plain float would count as correct if it is above 0.
"""

from __future__ import annotations

import re
from typing import Any

from posttrain.rewards.score import Score


def reward(
    prompts: list[Any],
    completions: list[str],
    completion_ids: list[list[int]],
    *,
    answer: list[str],
    **columns: list[Any],
) -> list[float | None]:
    """Return 1 if the last number is correct, 0.1 for a wrong number, 0 for no number."""
    return [judge(text, gold) for text, gold in zip(completions, answer, strict=True)]


def judge(completion: str, gold: str) -> Score | None:
    """Return the score of one completion."""
    expected = number_in(gold)
    if expected is None:
        return None  # this reward cannot judge an answer that is not a number
    number = number_in(completion)
    if number is None:
        return Score(0.0, "no number")
    return Score(1.0, "correct") if number == expected else Score(0.1, "wrong")


def number_in(text: str) -> float | None:
    """Return the last number in a text, None if there is none."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
    return float(numbers[-1]) if numbers else None
