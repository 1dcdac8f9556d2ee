"""Rows as other tools write them, in posttrain's columns: ShareGPT's, JSON text, nulls of Parquet.

What cannot be read with certainty, such as a list in Python's own notation, is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from posttrain.data.rows import Row, numbered

CHAT_COLUMNS = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")
"""Columns that may hold a chat."""
JSON_LIST = re.compile(r'\s*\[\s*\{\s*"')
PYTHON_LIST = re.compile(r"\s*\[\s*\{\s*'(?:role|content|from|value)'\s*:")
OTHER_FORMS = ("prompt", "chosen", "rejected", "text")
"""Columns beside which `conversations` is not the whole row."""


def standard_forms(rows: Iterable[Row], source: str) -> list[Row]:
    """Return rows with the columns that posttrain reads; raise ValueError that names a row."""
    standard = []
    for where, row in numbered(rows, source):
        try:
            standard.append(standard_form(row))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return standard


def standard_form(row: Row) -> Row:
    """Return the row with the columns that posttrain reads; raise ValueError for what is unclear.

    Chats in JSON text become lists. Nulls, which Parquet fills in, leave out the columns of a form
    that the row does not have. `conversations` of ShareGPT become `messages`; those of a pair stay.
    """
    read = {name: _chat_in(row[name], name) for name in CHAT_COLUMNS if name in row}
    if _has(read, "messages") or _has(read, "conversations"):
        nulls = {"prompt", "completion", "messages"}
    else:
        nulls = {"messages"} if _has(read, "prompt") else set()
    absent = {name for name in nulls & read.keys() if read[name] is None}
    if absent or any(value is not row[name] for name, value in read.items()):
        row = {k: read.get(k, v) for k, v in row.items() if k not in absent}
    others = any(_has(row, name) for name in ("messages", *OTHER_FORMS))
    if not isinstance(row.get("conversations"), list) or others:
        return row
    return {"messages" if k == "conversations" else k: value for k, value in row.items()}


def _has(row: Row, name: str) -> bool:
    return row.get(name) is not None


def _chat_in(value: Any, name: str) -> Any:
    """Return the list of messages that JSON text holds; any other value unchanged."""
    if not isinstance(value, str):
        return value
    if PYTHON_LIST.match(value):
        raise ValueError(
            f"{name} is a list in Python's notation ({value.strip()[:30]!r}), as CSV export writes "
            "it: save the rows as JSON lines or Parquet"
        )
    if not JSON_LIST.match(value):
        return value
    try:
        entries = json.loads(value)
    except ValueError:
        return value
    keys = ({"role"}, {"from", "value"})
    is_chat = all(isinstance(e, dict) and any(k <= e.keys() for k in keys) for e in entries)
    return entries if is_chat else value
