"""A score that remembers why it was given."""

from collections.abc import Mapping

Parts = Mapping[str, float | None]


class Score(float):
    """A float with a `verdict`, so that a wrong answer and a timeout can be counted apart, and the
    `parts` that a weighted sum was made of, so that each can be logged apart.

    It behaves as a plain float everywhere else: `Score(1.0, "correct") == 1.0`.
    """

    verdict: str | None
    parts: Parts | None

    def __new__(
        cls, value: float, verdict: str | None = None, parts: Parts | None = None
    ) -> "Score":
        score = super().__new__(cls, value)
        score.verdict, score.parts = verdict, parts
        return score

    def __repr__(self) -> str:
        parts = "" if self.parts is None else f", {self.parts!r}"
        return f"Score({float(self)!r}, {self.verdict!r}{parts})"


def verdict_of(value: float | None) -> str | None:
    return value.verdict if isinstance(value, Score) else None


def parts_of(value: float | None) -> Parts | None:
    """What a weighted reward's parts gave, by name, before weighting."""
    return value.parts if isinstance(value, Score) else None


def is_correct(value: float) -> bool:
    """A reward with verdicts says itself what is correct; of any other, a positive score is."""
    verdict = verdict_of(value)
    return value > 0 if verdict is None else verdict == "correct"
