"""One policy for overlong rows, and the table that says what became of each source's rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

OnOverlong = Literal["error", "drop", "truncate", "split"]


@dataclass
class LengthTable:
    """What became of the rows of one source. Lengths are in tokens, before any cut."""

    name: str
    rows: int = 0
    kept: int = 0
    dropped: int = 0
    truncated: int = 0
    trained_tokens: int = 0
    length_p50: int = 0
    length_p95: int = 0
    length_max: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """Why rows were dropped, where it is not their length alone."""
    lengths: list[int] = field(default_factory=list, repr=False)

    def drop(self, reason: str) -> None:
        self.dropped += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def finish(self) -> LengthTable:
        lengths = sorted(self.lengths)
        self.rows = len(lengths)
        self.length_p50 = lengths[len(lengths) // 2]
        self.length_p95 = lengths[int(len(lengths) * 0.95)]
        self.length_max = lengths[-1]
        if self.kept == 0:
            why = ", ".join(f"{n} {reason}" for reason, n in self.reasons.items())
            raise ValueError(
                f"{self.name}: none of the {self.rows} rows is left "
                f"({why + '; ' if why else ''}shortest {lengths[0]} tokens); "
                + ("look at the data" if why else "raise length.max_length")
            )
        return self

    def as_row(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k != "lengths"}


def overlong(name: str, number: int, length: int, max_length: int, what: str) -> str:
    choices = "drop" if what == "prompt" else "drop or truncate"
    return (
        f"{name}, row {number}: the {what} has {length} tokens, more than length.max_length="
        f"{max_length}; raise it or set length.on_overlong: {choices}"
    )
