"""A rendered prompt with one completion: the unit of `pair` and `unpaired` rows."""

from __future__ import annotations

from dataclasses import dataclass, field

from posttrain.common.batch import Sequence
from posttrain.data.entries import Notes
from posttrain.data.messages import messages_of
from posttrain.data.render import Renderer
from posttrain.data.rows import Row


@dataclass
class Judged:
    """A rendered prompt with one completion."""

    sequence: Sequence
    completion: list[int]
    """The token ids under the loss mask."""
    notes: Notes = field(default_factory=dict)


def render(row: Row, renderer: Renderer) -> Judged:
    """Render a prompt with one completion; the loss mask covers the completion's turns alone.

    Raise ValueError if the prompt ends with an assistant turn.
    """
    row = {column: value for column, value in row.items() if column != "messages"}
    prompt = messages_of(row, "prompt")
    if prompt and prompt[-1]["role"] == "assistant":
        raise ValueError("the prompt ends with an assistant turn: end it with another role's turn")
    rendered = renderer.training(row, one=True)
    (sequence,) = rendered.sequences
    return Judged(sequence, sequence.input_ids[sequence.loss_mask].tolist(), rendered.notes)


def is_empty(side: Judged, renderer: Renderer) -> bool:
    """Whether a completion has no tokens except stop tokens."""
    return not set(side.completion) - {*renderer.stop_token_ids}


def cut(side: Judged, max_length: int) -> Judged:
    """Return a completion cut to the first max_length tokens of its sequence."""
    sequence = Sequence(side.sequence.input_ids[:max_length], side.sequence.loss_mask[:max_length])
    return Judged(sequence, sequence.input_ids[sequence.loss_mask].tolist(), side.notes)
