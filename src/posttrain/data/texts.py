"""The texts of rows of any kind, to train a tokenizer on."""

from __future__ import annotations

from typing import Any

from posttrain.data.rows import Row

TEXT_COLUMNS = (
    "text",
    "prompt",
    "completion",
    "messages",
    "chosen",
    "rejected",
    "conversations",
    "system",
    "instruction",
    "input",
    "completions",
)


def texts_of(row: Row) -> list[str]:
    """Return a row's texts to train a tokenizer on; the renderer reports malformed rows."""
    return [text for column in TEXT_COLUMNS for text in texts_in(row.get(column))]


def texts_in(value: Any) -> list[str]:
    """Return the texts in a text, a message, or a list of either."""
    if isinstance(value, list):
        return [text for part in value for text in texts_in(part)]
    if isinstance(value, dict):
        return texts_in(value.get("content", value.get("value", value.get("text"))))
    return [value] if isinstance(value, str) else []
