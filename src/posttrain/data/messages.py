"""Strings and messages in the columns of a row."""

from __future__ import annotations

from typing import Any

from posttrain.data.entries import Message, Notes, malformed, read_messages
from posttrain.data.rows import Row


def messages_of(
    row: Row, column: str, role: str = "user", notes: Notes | None = None
) -> list[Message]:
    """Return the messages of a column, a string or a list; raise ValueError for anything else."""
    value = row.get(column)
    if isinstance(value, str) and column != "messages":
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        raise malformed(column, value)
    return read_messages(value, column, notes)


def check_text(row: Row) -> None:
    """Raise ValueError unless the row's `text` is a string."""
    if not isinstance(row["text"], str):
        raise ValueError(f"text must be a string; got {shown(row['text'])}")


def shown(value: Any) -> str:
    """Return the beginning of a wrong value for a message; None is the null of JSON."""
    return "null" if value is None else repr(str(value)[:60])
