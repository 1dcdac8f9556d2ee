"""A score with the verdict and the parts that it was made from."""

from collections.abc import Mapping

Parts = Mapping[str, float | None]


class Score(float):
    """A float with a `verdict` and the `parts` of a weighted sum.

    The verdict lets a wrong answer and a timeout be counted separately, the parts let each reward
    of the sum be logged separately, or each class that a judge of refusals may name (0 or 1). It is
    a plain float otherwise: `Score(1.0, "correct") == 1.0`.
    """

    verdict: str | None
    parts: Parts | None

    def __new__(
        cls, value: float, verdict: str | None = None, parts: Parts | None = None
    ) -> "Score":
        """Return a score; a subclass of float takes its value here, not in __init__."""
        score = super().__new__(cls, value)
        score.verdict, score.parts = verdict, parts
        return score

    def __repr__(self) -> str:
        parts = "" if self.parts is None else f", {self.parts!r}"
        return f"Score({float(self)!r}, {self.verdict!r}{parts})"


def verdict_of(value: float | None) -> str | None:
    """Return the verdict of a score; None if it has none."""
    return value.verdict if isinstance(value, Score) else None


def parts_of(value: float | None) -> Parts | None:
    """Return the scores of a weighted reward's parts, by name, before weighting."""
    return value.parts if isinstance(value, Score) else None


def is_correct(value: float) -> bool:
    """Whether the verdict is "correct" or, for a score without a verdict, the score is positive."""
    verdict = verdict_of(value)
    return value > 0 if verdict is None else verdict == "correct"
