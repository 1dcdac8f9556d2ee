"""A score that remembers why it was given."""


class Score(float):
    """A float with a `verdict`, so that a wrong answer and a timeout can be counted apart.

    It behaves as a plain float everywhere else: `Score(1.0, "correct") == 1.0`.
    """

    verdict: str

    def __new__(cls, value: float, verdict: str) -> "Score":
        score = super().__new__(cls, value)
        score.verdict = verdict
        return score

    def __getnewargs__(self) -> tuple[float, str]:  # type: ignore[override]
        return float(self), self.verdict

    def __repr__(self) -> str:
        return f"Score({float(self)!r}, {self.verdict!r})"
