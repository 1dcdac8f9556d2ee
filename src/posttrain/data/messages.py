"""Strings and messages in the columns of a row."""

from __future__ import annotations

from typing import Any

from posttrain.data.rows import Row

Message = dict[str, Any]
"""role, content, and whatever else the chat template reads."""


def messages_of(row: Row, column: str, role: str = "user") -> list[Message]:
    """Return the messages of a column, a string or a list; raise ValueError for anything else."""
    value = row.get(column)
    if isinstance(value, str) and column != "messages":
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in value
    ):
        raise ValueError(
            f"{column} must be {'' if column == 'messages' else 'a string or '}a list of "
            f"{{role, content}} messages; got {shown(value)}"
        )
    return value


def check_text(row: Row) -> None:
    """Raise ValueError unless the row's `text` is a string."""
    if not isinstance(row["text"], str):
        raise ValueError(f"text must be a string; got {shown(row['text'])}")


def shown(value: Any) -> str:
    """Return the beginning of a wrong value for a message; None is the null of JSON."""
    return "null" if value is None else repr(str(value)[:60])
