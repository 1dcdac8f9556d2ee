r"""Whether a completion's final answer is mathematically equal to the reference answer.

1. `answers.extract` finds one answer in the text: what follows the last marker (`####`, a box,
   "Answer:", "the answer is"), else the whole text.
2. Two plain numbers ("1,234.50", "$18", "25 %", "-3/4", "18 dollars") are compared as exact
   fractions, in this process, in microseconds. 2 equals 2.0; 0.333333 does not equal 1/3.
3. Everything else is taken apart (`answers.forms`) and compared part by part, formulas by sympy,
   in a process that can be killed (`math_worker`).

If the reference is a number, a completion without a marker is judged by its last number, like
lm-eval's flexible-extract, provided that this number stands alone. The conventions, with their
reasons, are in docs/math_answers.md.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

from pydantic import Field

from posttrain.rewards.base import Reward, RewardConfig, each_row_alone
from posttrain.rewards.rules.answers.extract import (
    DOUBLED,
    LONGEST_ANSWER,
    TAIL,
    Answer,
    every_boxed,
    final_answer,
    formatted_answer,
    prose_of,
    stated_answer,
    stated_number,
    unclosed,
)
from posttrain.rewards.rules.answers.numbers import Number, plain_number, same_number
from posttrain.rewards.rules.answers.prose import last_number
from posttrain.rewards.rules.answers.symbolic import Conventions
from posttrain.rewards.rules.math_worker import VERDICTS, compare
from posttrain.rewards.score import Score

__all__ = [
    "TAIL",
    "VERDICTS",
    "Answer",
    "Conventions",
    "MathCorrectness",
    "Number",
    "build",
    "check",
    "final_answer",
    "formatted_answer",
    "last_number",
    "plain_number",
    "stated_answer",
    "stated_number",
    "verdicts",
]

_DEFAULTS = Conventions()


def reference_answer(gold: str) -> str:
    r"""Return the answer of a reference; "" if it has none.

    A reference is trusted more than a completion: all of its boxes are its answer, a box that is
    not closed is read to the end, and backslashes doubled by JSON are halved.
    """
    if "\\\\" in gold and "\\begin" not in gold:
        gold = DOUBLED.sub(r"\\", gold)
    answer, marked, _ = final_answer(gold)
    boxes = every_boxed(gold[-TAIL:].strip())
    if marked and boxes.endswith(answer):
        return boxes
    if not marked and (rest := unclosed(gold)):
        return rest.strip()
    return answer


@lru_cache(maxsize=1 << 14)
def _reference(gold: str) -> tuple[str, Number | None]:
    answer = reference_answer(gold)
    return answer, plain_number(answer)


def check(
    completion: str, gold: str, *, timeout: float = 5.0, conventions: Conventions = _DEFAULTS
) -> str:
    r"""Return the verdict of one completion.

    Args:
        completion: The model's text.
        gold: The reference: a number, LaTeX, `\boxed{...}`, or a solution ending in `#### x`.
        timeout: Limit of one symbolic comparison, in seconds of CPU time. Plain numbers need none.
        conventions: What counts as equal.

    Returns:
        One of `VERDICTS`. "unparseable_gold" means that the reference is empty or unreadable, so
        that the completion cannot be judged; it takes precedence over the others.

    Raises:
        RuntimeError: The worker process cannot start.
    """
    gold_text, gold_number = _reference("" if gold is None else str(gold))
    if not gold_text or len(gold_text) > LONGEST_ANSWER:
        return "unparseable_gold"
    found = stated_answer(completion)
    if (verdict := _by_numbers(gold_text, gold_number, found, conventions)) is not None:
        return verdict
    answer, marked, _ = found
    if not marked:
        answer = answer[-LONGEST_ANSWER:]
    elif len(answer) > LONGEST_ANSWER:
        answer = ""
    return compare(
        gold_text, answer, whole_text=not marked, timeout=timeout, conventions=conventions
    )


def _by_numbers(
    gold_text: str, gold: Number | None, found: Answer, conventions: Conventions
) -> str | None:
    """Return the verdict of two plain numbers; None if the two are not both numbers."""
    if gold is None:
        # "5 m" may be a product and "1,5" a list; next to 5 metres and 1.5 they are numbers.
        number = plain_number(found.text)
        if number is None or not (number.unit or "," in gold_text):
            return None
        gold = plain_number(gold_text, letters=number.unit != (), comma=True)
        if gold is None:
            return None
    else:
        number = stated_number(found, letters=gold.unit != ())
    if number is None:
        unread = not found.text or prose_of(found) is not None
        return "unparseable_prediction" if unread else None
    same = same_number(gold, number, units=conventions.units, tolerance=conventions.tolerance)
    return "correct" if same else "wrong"


def verdicts(
    completions: Sequence[str],
    golds: Sequence[str],
    *,
    timeout: float = 5.0,
    conventions: Conventions = _DEFAULTS,
) -> list[str]:
    """Return the verdict of every completion against the gold at the same position.

    Raises:
        ValueError: The two sequences differ in length.
    """
    rows = zip(completions, golds, strict=True)
    return [check(c, g, timeout=timeout, conventions=conventions) for c, g in rows]


class MathCorrectness(RewardConfig):
    """Settings of the math reward."""

    type: Literal["math_correctness"] = "math_correctness"
    positive: float = 1.0
    """Score of a correct completion."""
    negative: float = 0.0
    """Score of any other completion."""
    timeout: float = 5.0
    """Limit of one symbolic comparison, in seconds of CPU time."""
    units: Literal["compare", "ignore"] = "compare"
    """compare: an answer with another unit than the reference's is wrong; if only one of the two
    has a unit, it is not compared. ignore: units are never compared."""
    order: Literal["free", "kept"] = "free"
    """Order of a list without brackets: free, as of solutions, or kept. Tuples always keep it."""
    tolerance: float = Field(0.0, ge=0, lt=1)
    """Relative error allowed in a number; 0 compares exactly, so that 0.333 is not 1/3."""
    evaluated: bool = True
    """If the reference is a number, give no credit to an answer that leaves it to be computed, such
    as 12 + 5 or a sum sign."""

    def conventions(self) -> Conventions:
        """Return what counts as equal."""
        return Conventions(self.units == "compare", self.order, self.tolerance, self.evaluated)


def build(config: MathCorrectness) -> Callable[..., list[float | None]]:
    """Return the reward function, `reward(prompts, completions, completion_ids, *, answer, ...)`.

    A correct answer scores `positive`. A wrong answer, an unreadable one and a timeout score
    `negative`, each with its own verdict. A row whose reference cannot be read gives None (not
    applicable), as no score would be fair. Call `verdicts` to count such rows before training.
    """
    conventions = config.conventions()

    @each_row_alone
    def reward(
        prompts: Sequence[Any],
        completions: Sequence[str],
        completion_ids: Sequence[Any],
        *,
        answer: Sequence[str],
        **columns: Any,
    ) -> list[float | None]:
        found = verdicts(completions, answer, timeout=config.timeout, conventions=conventions)
        return [
            None
            if verdict == "unparseable_gold"
            else Score(config.positive if verdict == "correct" else config.negative, verdict)
            for verdict in found
        ]

    return reward


REWARD = Reward(MathCorrectness, build)
