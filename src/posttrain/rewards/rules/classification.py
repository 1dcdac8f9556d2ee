"""Whether a completion states the right one of a fixed set of labels, such as FEVER's verdicts.

A label is matched as whole words, in any case, with spaces, hyphens or underscores between them. If
one label contains another ("mostly true", "true"), the longest match counts. The label is taken
from the sentence after the last answer marker ("Answer:", a box, ...), or, if that has none, from
the last sentence with a label. A sentence with two different labels is ambiguous. Negations are not
understood: "not true" states "true".
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from posttrain.rewards.base import Column, Reward, RewardConfig, each_row_alone, needs_columns
from posttrain.rewards.rules.math import TAIL, final_answer
from posttrain.rewards.score import Score

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n")


class Classification(RewardConfig):
    """Settings of the classification reward."""

    type: Literal["classification"] = "classification"
    labels: list[str] = Field(min_length=2)
    """The labels, for example [SUPPORTS, REFUTES, NOT ENOUGH INFO]."""
    column: Column = "label"
    """Column with the true label, one of `labels`."""
    positive: float = 1.0
    """Score of a correct completion."""
    negative: float = 0.0
    """Score of any other completion."""

    @model_validator(mode="after")
    def _distinct_labels(self) -> "Classification":
        keys = [key(label) for label in self.labels]
        if "" in keys or len(set(keys)) < len(keys):
            raise ValueError(
                "labels must be non-empty and differ in more than case, spaces, hyphens and "
                f"underscores; got {self.labels}"
            )
        return self


def key(label: str) -> str:
    """Return the form in which labels are compared: its words in lower case, one space apart."""
    return " ".join(re.split(r"[\s_-]+", label.casefold().strip(" \t\n_-")))


def label_pattern(labels: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of the labels, the longest one first."""
    longest_first = sorted(map(key, labels), key=len, reverse=True)
    words = "|".join(r"[\s_-]+".join(map(re.escape, label.split(" "))) for label in longest_first)
    # neither inside a longer word nor in a hyphenated one, but inside _emphasis_
    return re.compile(
        rf"(?<![^\W_])(?<![^\W_][-_])(?:{words})(?![^\W_])(?![-_][^\W_])", re.IGNORECASE
    )


def stated(completion: str, pattern: re.Pattern[str]) -> set[str]:
    """Return the keys of the labels in the sentence that counts: one, several or none."""
    text = completion[-TAIL:].strip()
    answer = final_answer(text)
    sentences = _SENTENCE.split(text)[::-1]
    if answer.text != text:  # there is a marker, but prose may follow it
        after = _SENTENCE.split(answer.text)
        sentences = after if answer.marked else [after[0], *sentences]
    for sentence in sentences:
        if labels := {key(match[0]) for match in pattern.finditer(sentence)}:
            return labels
    return set()


def build(config: Classification) -> Callable[..., list[float | None]]:
    """Return the reward function.

    The verdicts are correct and, with the score `negative`, wrong, ambiguous and no_label. A row
    whose label is None or empty gives None. The function raises ValueError for a label that is not
    one of `labels`.
    """
    pattern = label_pattern(config.labels)
    keys = {key(label) for label in config.labels}

    def judge(completion: str, label: Any) -> Score | None:
        gold = "" if label is None else key(str(label))
        if not gold:
            return None
        if gold not in keys:
            raise ValueError(
                f"the column {config.column} holds {label!r}, which is not one of the labels "
                f"{', '.join(config.labels)}"
            )
        answers = stated(completion, pattern)
        if answers == {gold}:
            return Score(config.positive, "correct")
        verdict = "ambiguous" if len(answers) > 1 else "wrong" if answers else "no_label"
        return Score(config.negative, verdict)

    @each_row_alone
    def reward(
        prompts: Sequence[Any], completions: Sequence[str], completion_ids: Any, **columns: Any
    ) -> list[float | None]:
        labels = columns[config.column]
        return [judge(c, label) for c, label in zip(completions, labels, strict=True)]

    return needs_columns(reward, [config.column])


REWARD = Reward(Classification, build)
