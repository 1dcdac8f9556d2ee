"""Handling of overlong rows, and the table of how many rows of each source were kept or cut."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from posttrain.data import noted

OnOverlong = Literal["error", "drop", "truncate", "split"]


@dataclass
class LengthTable:
    """How many rows of one source were kept or cut. Lengths are in tokens, before any cut."""

    name: str
    read: int = 0
    """Rows of the source."""
    rows: int = 0
    """Sequences made of them, or pairs: a chat of which each turn is one counts as several."""
    kept: int = 0
    dropped: int = 0
    truncated: int = 0
    trained_tokens: int = 0
    length_p50: int = 0
    length_p95: int = 0
    length_max: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """Reason for dropping -> rows, for kinds that drop rows for more than their length."""
    notes: dict[str, noted.Noted] = field(default_factory=dict)
    """What is read differently from how rows write it -> the rows."""
    lengths: list[int] = field(default_factory=list, repr=False)

    def drop(self, reason: str) -> None:
        """Count a dropped row under its reason."""
        self.dropped += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def note(self, number: int, notes: dict[str, str]) -> None:
        """Count what is read differently in row `number`."""
        noted.count(self.notes, number, notes)

    def finish(self) -> LengthTable:
        """Fill in the number of rows and their lengths; raise ValueError if no row was kept."""
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
                + ("check the data" if why else "raise length.max_length")
            )
        return self

    def as_row(self) -> dict[str, Any]:
        """Return the table without the length of every row."""
        return {k: v for k, v in asdict(self).items() if k != "lengths"}


def overlong(name: str, number: int, length: int, max_length: int, what: str) -> str:
    """Return the error message for an overlong row, pair or prompt (`what`)."""
    choices = "drop" if what == "prompt" else "drop or truncate"
    return (
        f"{name}, row {number}: the {what} has {length} tokens, more than length.max_length="
        f"{max_length}; raise it or set length.on_overlong: {choices}"
    )
