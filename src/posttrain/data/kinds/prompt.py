"""Prompts to sample completions for, for the online methods.

prompt     a string or a list of messages; or `messages`, without a last assistant turn
           every other column goes to the reward
"""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.data.kinds.kind import Kind, render_row
from posttrain.data.kinds.language_modeling import Form, check_columns
from posttrain.data.lengths import LengthTable, OnOverlong, overlong
from posttrain.data.render import Renderer
from posttrain.data.rows import Row

FORMS: list[Form] = [("prompt",), ("messages",)]


@dataclass
class Prompt:
    """A rendered prompt for the sampler, with the row whose other columns the reward reads."""

    input_ids: list[int]
    row: Row


def check(rows: list[Row], name: str) -> None:
    """Raise ValueError naming a row without a prompt."""
    check_columns(rows, name, FORMS)


def to_examples(
    rows: list[Row], renderer: Renderer, name: str, max_length: int, on_overlong: OnOverlong
) -> tuple[list[Prompt], LengthTable]:
    """Return the rendered prompts; an overlong one is an error or is dropped, never cut."""
    table = LengthTable(name, len(rows))
    kept: list[Prompt] = []
    for number, row in enumerate(rows, 1):
        ids, notes = render_row(row, number, name, FORMS, renderer.prompt)
        table.note(number, notes)
        table.lengths.append(len(ids))
        if len(ids) <= max_length:
            kept.append(Prompt(ids, row))
            table.kept += 1
        elif on_overlong == "drop":
            table.dropped += 1
        else:
            raise ValueError(overlong(name, number, len(ids), max_length, "prompt"))
    return kept, table.finish()


KIND = Kind("a prompt", to_examples, check=check)
