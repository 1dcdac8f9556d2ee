"""What a kind of row is: its columns, and how rows become examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.data.rows import Row


@dataclass(frozen=True)
class Kind:
    """A kind of data row that methods train on."""

    columns: str
    """What a row holds, in words: for messages and documents."""
    to_examples: Callable[..., tuple[list[Any], Any]]
    """(rows, renderer, name, max_length, on_overlong, **row_options) -> examples and a LengthTable.

    `row_options` are the method's (`TrainerConfig.row_options`). Raises ValueError naming the row
    for a malformed one and, with on_overlong "error", an overlong one."""
    asked: Callable[[Row], Row] = lambda row: row
    """(row) -> a row with its question in `prompt` or `messages`."""
    check: Callable[[list[Row], str], None] = lambda rows, name: None
    """(rows, name): raises ValueError for what can be told without a tokenizer, which takes seconds
    to load."""


def render_row(
    row: Row, number: int, name: str, forms: Sequence[tuple[str, ...]], make: Callable[[Row], Any]
) -> Any:
    """Return make(row); raise ValueError naming the row if it fails or the row has the columns of
    none of the forms."""
    if not any(set(wanted) <= row.keys() for wanted in forms):
        expected = " or ".join("+".join(wanted) for wanted in forms)
        raise ValueError(
            f"{name}, row {number}: expected the columns {expected}; found {', '.join(row)} "
            "(map them with data.columns)"
        )
    return named(name, number, make, row)


def named(name: str, number: int, make: Callable[..., Any], *args: Any) -> Any:
    """Return make(*args), with the row named in any ValueError."""
    try:
        return make(*args)
    except ValueError as error:
        raise ValueError(f"{name}, row {number}: {error}") from None
