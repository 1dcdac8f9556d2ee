"""Rows held out of training so that no prompt is on both sides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from posttrain.data.entries import read_messages, text_of
from posttrain.data.rows import Row, numbered


def question_of(row: Row) -> str:
    """Return what comes before the first answer, with case and whitespace normalised.

    `row` has `prompt` or `messages`, a string or messages; system messages are left out.
    """
    value = row["messages"] if "messages" in row else row["prompt"]
    if isinstance(value, list):
        messages = read_messages(value, "messages" if "messages" in row else "prompt")
        roles = [m["role"] for m in messages]
        start = messages[: roles.index("assistant")] if "assistant" in roles else messages
        value = "\n".join(text_of(m) for m in start if m["role"] != "system")
    return " ".join(str(value).casefold().split())


def is_held_out(group: str, share: float, seed: int) -> bool:
    """Whether a group is in the held-out share: a function of its text and the seed alone."""
    digest = hashlib.blake2b(
        group.encode("utf-8", "surrogatepass"), digest_size=8, key=str(seed).encode()
    )
    return int.from_bytes(digest.digest(), "big") / 2**64 < share


def group_text(value: Any) -> str:
    """Return a group's value as the string that is hashed."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def hold_out(
    parts: Sequence[tuple[str, list[Row]]],
    share: float,
    seed: int,
    column: str | None,
    asked: Callable[[Row], Row],
) -> tuple[list[list[Row]], list[list[Row]]]:
    """Return the rows to train on and those held out, for each part (name and rows).

    Rows with the same question are on the same side, and with `column` so are rows with the same
    value in it; `asked` returns a row with its question in `prompt` or `messages`. A row's side
    does not depend on the order of rows or on other rows, except through questions that several
    groups share. Raise ValueError naming a malformed row or a side that is left without rows.
    """
    keys: list[list[str]] = []
    for name, rows in parts:
        for where, row in numbered(rows, name):
            try:
                question = question_of(asked(row))
            except KeyError:
                raise ValueError(
                    f"{where}: expected a column prompt or messages, so that eval.split keeps "
                    f"equal questions together; got {', '.join(row)} (map them with data.columns)"
                ) from None
            except (ValueError, TypeError) as error:
                raise ValueError(f"{where}: {error}") from None
            keys.append([f"question {question}"])
            if column is not None:
                if row.get(column) is None:
                    raise ValueError(
                        f"{where}: no value in {column!r} (eval.split_by); the row has "
                        f"{', '.join(row)}"
                    )
                keys[-1].append(f"group {group_text(row[column])}")
    sides = iter(_sides(keys, share, seed))
    kept: list[list[Row]] = []
    held_out: list[list[Row]] = []
    for _, rows in parts:
        flags = [next(sides) for _ in rows]
        kept.append([row for row, held in zip(rows, flags) if not held])
        held_out.append([row for row, held in zip(rows, flags) if held])
    for what, sides_rows in (("to train on", kept), ("for the evaluation", held_out)):
        if not any(sides_rows):
            raise ValueError(
                f"eval.split={share:g} leaves none of the {len(keys)} rows {what}: choose another "
                "share, or set eval.data to rows of its own"
            )
    return kept, held_out


def _sides(keys: list[list[str]], share: float, seed: int) -> list[bool]:
    """Return whether each row is held out; rows linked by keys, directly or not, agree."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for first, *others in keys:
        for other in others:
            a, b = sorted((root(first), root(other)))
            parent[b] = a  # the smallest key is the root, whatever the order of rows
    return [is_held_out(root(row[0]).partition(" ")[2], share, seed) for row in keys]
