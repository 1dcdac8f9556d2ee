"""Whether a completion's answer equals the reference exactly, after both are normalised.

The answer is the last match of `extract` if that is set, otherwise what follows the completion's
last answer marker (`####`, a box, "Answer:", "the answer is"; as for math_correctness), or the
whole text if there is none. Normalising applies Unicode NFKC, turns each run of white space into
one space, strips quotes and emphasis around the text and punctuation after it, and folds case
unless `ignore_case` is false.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import field_validator

from posttrain.rewards.base import Column, Reward, RewardConfig, each_row_alone, needs_columns
from posttrain.rewards.rules.math import TAIL, final_answer
from posttrain.rewards.score import Score


class ExactMatch(RewardConfig):
    """Settings of the exact-match reward."""

    type: Literal["exact_match"] = "exact_match"
    column: Column = "answer"
    """Column with the reference: one value, or a list of acceptable values."""
    extract: str | None = None
    """Regular expression whose last match in the last 20,000 characters is the answer, or that
    match's first group if any."""
    ignore_case: bool = True
    """Ignore case in the comparison."""
    positive: float = 1.0
    """Score of a correct completion."""
    negative: float = 0.0
    """Score of any other completion."""

    @field_validator("extract")
    @classmethod
    def _compiles(cls, extract: str | None) -> str | None:
        try:
            re.compile(extract or "")
        except re.error as error:
            raise ValueError(f"extract {extract!r} is not a regular expression ({error})") from None
        return extract


def normalised(text: str, ignore_case: bool = True) -> str:
    """Normalise a text for comparison; keep its quotes and punctuation if it has nothing else."""
    text = " ".join(_normal_form(text).split())
    bare = text.rstrip(" .,;:!?\"'`*").lstrip(" \"'`*") or text
    return bare.casefold() if ignore_case else bare


MOST_MARKS = 30  # in a row, as in the stream-safe format of Unicode's annex 15


def _normal_form(text: str) -> str:
    """Return the text in NFKC, or as it is if it has longer runs of combining marks than any word.

    Sorting the marks of one letter takes time quadratic in their number.
    """
    marks = 0
    for character in "" if text.isascii() else text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks > MOST_MARKS:
            return text
    return unicodedata.normalize("NFKC", text)


def answer_of(completion: str, extract: re.Pattern[str] | None) -> str:
    """Return the answer that a completion states; an empty string if there is none."""
    if extract is None:
        return final_answer(completion).text
    matches = list(extract.finditer(completion[-TAIL:]))
    if not matches:
        return ""
    answer = matches[-1][1] if extract.groups else matches[-1][0]
    return (answer or "").strip()


def build(config: ExactMatch) -> Callable[..., list[float | None]]:
    """Return the reward function.

    The verdicts are correct and, with the score `negative`, wrong and no_answer. An empty reference
    gives None.
    """
    extract = re.compile(config.extract) if config.extract is not None else None

    def judge(completion: str, reference: Any) -> Score | None:
        references = reference if isinstance(reference, (list, tuple)) else [reference]
        golds = {normalised(str(r), config.ignore_case) for r in references if r is not None} - {""}
        if not golds:
            return None
        answer = answer_of(completion, extract)
        if not answer:
            return Score(config.negative, "no_answer")
        if normalised(answer, config.ignore_case) in golds:
            return Score(config.positive, "correct")
        return Score(config.negative, "wrong")

    @each_row_alone
    def reward(
        prompts: Sequence[Any], completions: Sequence[str], completion_ids: Any, **columns: Any
    ) -> list[float | None]:
        return [judge(c, r) for c, r in zip(completions, columns[config.column], strict=True)]

    return needs_columns(reward, [config.column])


REWARD = Reward(ExactMatch, build)
