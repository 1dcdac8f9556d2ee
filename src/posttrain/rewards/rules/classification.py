"""Does a completion state the right one of a fixed set of labels (FEVER verdicts and the like)?

A label is found as whole words, in any case, with spaces, hyphens or underscores between them, and
the longest label wins where one holds another ("mostly true", "true"). The sentence after the last
answer marker ("Answer:", a box, ...) counts if it holds a label; otherwise the last sentence that
does. A sentence with two different labels is ambiguous. A negation is not understood: "not true"
states "true".
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
    """For example [SUPPORTS, REFUTES, NOT ENOUGH INFO]."""
    column: Column = "label"
    """The true label, one of `labels`."""
    positive: float = 1.0
    """Score of a correct completion."""
    negative: float = 0.0
    """Score of a wrong one."""

    @model_validator(mode="after")
    def _distinct_labels(self) -> "Classification":
        keys = [key(label) for label in self.labels]
        if "" in keys or len(set(keys)) < len(keys):
            raise ValueError(f"labels must be different words: {self.labels}")
        return self


def key(label: str) -> str:
    """What is compared: the words of a label, without case and separators."""
    return " ".join(re.split(r"[\s_-]+", label.casefold().strip(" \t\n_-")))


def label_pattern(labels: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(map(key, labels), key=len, reverse=True)
    words = "|".join(r"[\s_-]+".join(map(re.escape, label.split(" "))) for label in longest_first)
    # not inside a longer word, and not a part of a hyphenated one; _emphasis_ is neither
    return re.compile(
        rf"(?<![^\W_])(?<![^\W_][-_])(?:{words})(?![^\W_])(?![-_][^\W_])", re.IGNORECASE
    )


def stated(completion: str, pattern: re.Pattern[str]) -> set[str]:
    """The keys of the labels in the sentence that counts: one, several, or none."""
    text = completion[-TAIL:].strip()
    answer = final_answer(text)
    sentences = _SENTENCE.split(text)[::-1]
    if answer.text != text:  # there is a marker; what follows it may be prose all the same
        after = _SENTENCE.split(answer.text)
        sentences = after if answer.marked else [after[0], *sentences]
    for sentence in sentences:
        if found := {key(match[0]) for match in pattern.finditer(sentence)}:
            return found
    return set()


def build(config: Classification) -> Callable[..., list[float | None]]:
    """The reward function for `config`.

    Verdicts: correct, and with `negative` wrong, ambiguous, no_label. A row whose label is None
    or empty gives None; a label that is not one of `labels` is a ValueError.
    """
    pattern = label_pattern(config.labels)
    keys = {key(label) for label in config.labels}

    def judge(completion: str, label: Any) -> Score | None:
        gold = "" if label is None else key(str(label))
        if not gold:
            return None
        if gold not in keys:
            raise ValueError(
                f"the column {config.column} holds {label!r}, which is none of the labels "
                f"{', '.join(config.labels)}"
            )
        found = stated(completion, pattern)
        if found == {gold}:
            return Score(config.positive, "correct")
        verdict = "ambiguous" if len(found) > 1 else "wrong" if found else "no_label"
        return Score(config.negative, verdict)

    @each_row_alone
    def reward(
        prompts: Sequence[Any], completions: Sequence[str], completion_ids: Any, **columns: Any
    ) -> list[float | None]:
        labels = columns[config.column]
        return [judge(c, label) for c, label in zip(completions, labels, strict=True)]

    return needs_columns(reward, [config.column])


REWARD = Reward(Classification, build)
