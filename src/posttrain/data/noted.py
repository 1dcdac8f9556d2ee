"""Notes on rows that are read differently from how they are written: counts, and lines to print."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Noted:
    """The rows that a note is about."""

    rows: int
    first_row: int
    example: str
    last_row: int = field(repr=False)


def count(counted: dict[str, Noted], number: int, notes: dict[str, str]) -> None:
    """Count the notes (text -> example, or an empty text) of row `number`, each once."""
    for text, example in notes.items():
        noted = counted.setdefault(text, Noted(0, number, example, 0))
        noted.rows += noted.last_row != number
        noted.last_row = number


def lines(
    name: str, num_rows: int, counted: dict[str, Noted], num_sequences: int | None = None
) -> list[str]:
    """Return a line for each kind of note, with the number and share of rows and the first.

    Another one says that the rows became more sequences, which is what a table counts.
    """
    made = []
    if num_sequences is not None and 0 < num_rows < num_sequences:
        text = f"{num_rows:,} rows became {num_sequences:,} sequences, which are counted above"
        made = [f"  note on {name}: {text}"]
    return made + [
        f"  note on {name}: {text}; {noted.rows:,} of {num_rows:,} rows "
        f"({noted.rows / num_rows:.1%}), first row {noted.first_row}"
        + (f": {noted.example}" if noted.example else "")
        for text, noted in counted.items()
    ]
