"""Is the answer of a completion the reference, letter by letter once both are normalised?

The answer is what `extract` finds last, or else what follows the completion's last answer marker
(`####`, a box, "Answer:", "the answer is"; as for math_correctness), or else the whole text.
Normalised means: Unicode NFKC, one space for each stretch of spaces, no quotes or emphasis around
it, no punctuation after it and, unless `ignore_case` is false, case-folded.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import field_validator

from posttrain.rewards.base import Column, Reward, RewardConfig, each_row_alone, needs_columns
from posttrain.rewards.rules.math import final_answer
from posttrain.rewards.score import Score


class ExactMatch(RewardConfig):
    """Settings of the exact-match reward."""

    type: Literal["exact_match"] = "exact_match"
    column: Column = "answer"
    """The reference: one value, or a list of acceptable ones."""
    extract: str | None = None
    """A regular expression; the answer is its last match, or that match's first group."""
    ignore_case: bool = True
    """Compare without case."""
    positive: float = 1.0
    """Score of a correct completion."""
    negative: float = 0.0
    """Score of a wrong one."""

    @field_validator("extract")
    @classmethod
    def _compiles(cls, extract: str | None) -> str | None:
        try:
            re.compile(extract or "")
        except re.error as error:
            raise ValueError(f"extract {extract!r} is not a regular expression ({error})") from None
        return extract


def normalised(text: str, ignore_case: bool = True) -> str:
    """`text` without the differences that do not count; the text itself if nothing else is left."""
    text = " ".join(unicodedata.normalize("NFKC", text).split())
    bare = text.rstrip(" .,;:!?\"'`*").lstrip(" \"'`*") or text
    return bare.casefold() if ignore_case else bare


def answer_of(completion: str, extract: re.Pattern[str] | None) -> str:
    """The answer that a completion states; empty where there is none."""
    if extract is None:
        return final_answer(completion).text
    matches = list(extract.finditer(completion))
    if not matches:
        return ""
    found = matches[-1][1] if extract.groups else matches[-1][0]
    return (found or "").strip()


def build(config: ExactMatch) -> Callable[..., list[float | None]]:
    """The reward function for `config`.

    Verdicts: correct, wrong, no_answer (scores `negative`). An empty reference gives None.
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
