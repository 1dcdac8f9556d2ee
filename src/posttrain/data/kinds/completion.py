"""Prompts with completions, or chats, for `sft`.

prompt       a string or a list of messages, whose assistant turns are context
completion   a string or a list of messages, whose assistant turns are trained on
messages     instead of both: every assistant turn is trained on
"""

from __future__ import annotations

from posttrain.common.batch import Example
from posttrain.data.kinds.kind import Kind
from posttrain.data.kinds.language_modeling import Form, check_columns, to_sequences
from posttrain.data.lengths import LengthTable, OnOverlong
from posttrain.data.render import Renderer
from posttrain.data.rows import Row

FORMS: list[Form] = [("prompt", "completion"), ("messages",)]


def check(rows: list[Row], name: str) -> None:
    """Raise ValueError naming a row without the columns of a form, or with malformed values."""
    check_columns(rows, name, FORMS)


def to_examples(
    rows: list[Row], renderer: Renderer, name: str, max_length: int, on_overlong: OnOverlong
) -> tuple[list[Example], LengthTable]:
    """Return the rows' sequences, with the completions under the loss mask."""
    make = renderer.training
    return to_sequences(rows, renderer, name, max_length, on_overlong, FORMS, make)


KIND = Kind("a prompt with its completion, or messages", to_examples, check=check)
