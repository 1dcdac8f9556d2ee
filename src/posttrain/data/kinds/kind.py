"""The definition of a kind of row: its columns, and how rows become examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.data.rows import Row


@dataclass(frozen=True)
class Kind:
    """A kind of row that methods train on."""

    columns: str
    """What a row holds, in words."""
    to_examples: Callable[..., tuple[list[Any], Any]]
    """(rows, renderer, name, max_length, on_overlong, **row_options) -> examples and a LengthTable.

    `row_options` are the method's (`TrainerConfig.row_options`). Raises ValueError naming a row
    that is malformed or, with on_overlong "error", overlong."""
    asked: Callable[[Row], Row] = lambda row: row
    """(row) -> a row with the question in `prompt` or `messages`."""
    check: Callable[[list[Row], str], None] = lambda rows, name: None
    """(rows, name): raises ValueError for faults that are visible without a tokenizer, which takes
    seconds to load."""


def render_row(
    row: Row, number: int, name: str, forms: Sequence[tuple[str, ...]], make: Callable[[Row], Any]
) -> Any:
    """Return make(row); raise ValueError naming the row if it fails or has no form's columns."""
    if not any(set(form) <= row.keys() for form in forms):
        expected = " or ".join("+".join(form) for form in forms)
        raise ValueError(
            f"{name}, row {number}: expected the columns {expected}; got {', '.join(row)} "
            f"({_remedy(row)})"
        )
    return named(name, number, make, row)


def _remedy(row: Row) -> str:
    """Return how to read a row of another form; Alpaca's needs a template for its two columns."""
    if "instruction" in row and "output" in row:
        return (
            "Alpaca: set data.prompt_template: instruction and data.columns: {completion: output}"
        )
    return "map them with data.columns"


def named(name: str, number: int, make: Callable[..., Any], *args: Any) -> Any:
    """Return make(*args); any ValueError names the row."""
    try:
        return make(*args)
    except ValueError as error:
        raise ValueError(f"{name}, row {number}: {error}") from None
