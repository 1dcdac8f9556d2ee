"""Whole texts, for `pretrain`.

text   a string; every token is trained on
"""

from __future__ import annotations

import torch

from posttrain.common.batch import Example, Sequence
from posttrain.data.chat import refuse_media
from posttrain.data.kinds.kind import Kind
from posttrain.data.kinds.language_modeling import Form, check_columns, to_sequences
from posttrain.data.lengths import LengthTable, OnOverlong
from posttrain.data.messages import check_text
from posttrain.data.render import Rendered, Renderer
from posttrain.data.rows import Row

FORMS: list[Form] = [("text",)]


def check(rows: list[Row], name: str) -> None:
    """Raise ValueError naming a row whose column text is missing or not a string."""
    check_columns(rows, name, FORMS)


def to_examples(
    rows: list[Row], renderer: Renderer, name: str, max_length: int, on_overlong: OnOverlong
) -> tuple[list[Example], LengthTable]:
    """Return the texts' sequences, trained on from the second token on."""

    def make(row: Row) -> Rendered:
        check_text(row)
        refuse_media(row)
        ids = torch.tensor(renderer.text_ids(row["text"]))
        return Rendered([Sequence(ids, torch.arange(len(ids)) > 0)])

    return to_sequences(rows, renderer, name, max_length, on_overlong, FORMS, make)


KIND = Kind("a text", to_examples, lambda row: {"prompt": row["text"]}, check)
