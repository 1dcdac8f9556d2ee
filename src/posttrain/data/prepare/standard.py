"""Rows of any file in posttrain's columns, checked one by one, and the part that each goes to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.common.errors import SettingError
from posttrain.data.entries import REASONING
from posttrain.data.files import placed_rows
from posttrain.data.forms import standard_form
from posttrain.data.holdout import group_text, is_held_out, question_of
from posttrain.data.messages import messages_of
from posttrain.data.prepare.digests import TRAIN, VALIDATION
from posttrain.data.rows import Row, rename_columns
from posttrain.data.verl import RL_COLUMNS, from_verl, to_verl_rl, to_verl_sft

OWN_COLUMNS = {
    "posttrain": ("prompt", "completion", "messages", "answer", "chosen", "rejected"),
    "verl_sft": ("messages",),
    "verl_rl": RL_COLUMNS,
}
PARTS = {TRAIN: "train", VALIDATION: "validation"}


@dataclass(frozen=True)
class Preparation:
    """The options of `posttrain data prepare`."""

    output_dir: Path
    val_split: float = 0.1
    seed: int = 0
    prompt_key: str | None = None
    response_key: str | None = None
    answer_key: str | None = None
    group_key: str | None = None
    keep: tuple[str, ...] | None = None
    """Other columns to keep; None keeps those of one simple type."""
    format: str = "posttrain"
    data_source: str | None = None
    ability: str | None = None
    decontaminate: str | None = None


def standard_rows(files: list[Path], config: Preparation) -> Iterator[tuple[str, Row, Row | None]]:
    """Yield each row's location, the row as in the file, and in posttrain's columns (None: empty).

    Raise ValueError for a malformed row, or for one of another form than the first.
    """
    form, first = "", ""
    for file in files:
        for where, raw in placed_rows(file):
            try:
                row = standard(raw, config)
                if is_empty(row):
                    yield where, raw, None
                    continue
                row_form = form_of(row)
            except SettingError as error:
                raise error.at(where) from None
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            form, first = form or row_form, first or where
            if row_form != form:
                raise ValueError(
                    f"{where}: a row with {row_form}, but {first} has {form}: prepare them "
                    "separately"
                )
            yield where, raw, row


def standard(raw: Row, config: Preparation) -> Row:
    """Return the row in posttrain's columns, without columns that `keep` rules out."""
    row = from_verl(raw)
    # from_verl() has copied response to completion
    if "completion" in row and "completion" not in raw and config.response_key is None:
        row = {k: v for k, v in row.items() if k != "response"}
    names = {
        "prompt": config.prompt_key,
        "completion": config.response_key,
        "answer": config.answer_key,
    }
    renamed = {ours: theirs for ours, theirs in names.items() if theirs is not None}
    for ours, theirs in renamed.items():
        if theirs not in row:
            field = "response_key" if ours == "completion" else f"{ours}_key"
            raise SettingError(
                field,
                f"no column {theirs!r}; the row has {', '.join(row)}: name one that every row has",
            )
    if renamed:
        row = rename_columns(row, renamed, "")
    row = standard_form(row)
    if config.format != "posttrain" and isinstance(row.get("messages"), list):
        row = row | {"messages": messages_of(row, "messages")}
    if "prompt" in renamed or "completion" in renamed:
        row.pop("messages", None)
    if "messages" not in row and "prompt" not in row:
        raise SettingError(
            "prompt_key", f"expected prompt or messages; got {', '.join(row)}: name the column"
        )
    if config.keep is None:
        return row
    wanted = {*OWN_COLUMNS["posttrain"], *OWN_COLUMNS[config.format], *config.keep}
    return {k: v for k, v in row.items() if k in wanted}


def trained_columns(row: Row) -> list[str]:
    """Return the columns that become tokens: messages, or those of prompt and completion."""
    return ["messages"] if "messages" in row else [c for c in ("prompt", "completion") if c in row]


def is_empty(row: Row) -> bool:
    """Whether the prompt, the completion, or the last of the messages is blank."""
    for column in trained_columns(row):
        value = row[column]
        if isinstance(value, list):
            last = value[-1] if value else {}
            if isinstance(last, dict):
                if any(last.get(key) for key in ("tool_calls", "function_call", *REASONING)):
                    continue
                value = last.get("content", last.get("value", ""))
            else:
                value = last
        if value is None or (isinstance(value, str) and not value.strip()):
            return True
    return False


def form_of(row: Row) -> str:
    """Return what a row trains on, in words; raise ValueError for a malformed column."""
    parts = []
    for column in trained_columns(row):
        messages_of(row, column)
        parts.append(f"{column} as {'a string' if isinstance(row[column], str) else 'messages'}")
    return " and ".join(parts)


def part_of(group: str, config: Preparation) -> int:
    """Return the part that a group's rows go to, TRAIN or VALIDATION."""
    held_out = is_held_out(group, config.val_split, config.seed)
    return VALIDATION if held_out else TRAIN


def group_of(raw: Row, row: Row, config: Preparation) -> str:
    """Return the group that decides a row's part: the value of group_key, or its question."""
    if config.group_key is None:
        return question_of(row)
    value = raw.get(config.group_key)
    if value is None:
        raise SettingError(
            "group_key",
            f"no value in {config.group_key!r}; the row has {', '.join(raw)}: name a column that "
            "every row has",
        )
    return group_text(value)


def content(row: Row) -> bytes:
    """Return bytes that are equal for equal rows, whatever the order of their columns."""
    text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        (name, *_) = [k for k, v in row.items() if has_half_characters(v)] or ["a column"]
        raise ValueError(
            f"{name} contains {error.object[error.start]!r}, half of a character: write the whole "
            "character"
        ) from None


def has_half_characters(value: Any) -> bool:
    """Whether a value contains a lone surrogate."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return any("\ud800" <= character <= "\udfff" for character in text)


def laid_out(row: Row, config: Preparation, part: int, index: int) -> Row:
    """Return the row in the layout of config.format."""
    if config.format == "verl_sft":
        return to_verl_sft(row)
    if config.format == "verl_rl":
        return to_verl_rl(row, PARTS[part], index, config.data_source, config.ability)
    return row
