"""A rendered prompt with one completion: the unit of `pair` and `unpaired` rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from posttrain.common.batch import Sequence
from posttrain.data.render import Renderer
from posttrain.data.rows import Row


@dataclass
class Judged:
    """A rendered prompt with one completion."""

    sequence: Sequence
    completion: list[int]
    """The token ids under the loss mask."""


def render(row: Row, renderer: Renderer) -> Judged:
    """Render a prompt with one completion; the loss mask covers the completion's turns alone.

    Raise ValueError if the prompt ends with an assistant turn.
    """
    prompt = row["prompt"]
    prompt_tokens = len(renderer.prompt_ids({"prompt": prompt}))
    if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
        raise ValueError("the prompt ends with an assistant turn: end it with another role's turn")
    sequence = renderer.training_sequence(row)
    # earlier assistant turns belong to the prompt
    sequence.loss_mask &= torch.arange(len(sequence)) >= prompt_tokens
    return Judged(sequence, sequence.input_ids[sequence.loss_mask].tolist())


def is_empty(side: Judged, renderer: Renderer) -> bool:
    """Whether a completion has no tokens except stop tokens."""
    return not set(side.completion) - {*renderer.stop_token_ids}


def cut(side: Judged, max_length: int) -> Judged:
    """Return a completion cut to the first max_length tokens of its sequence."""
    sequence = Sequence(side.sequence.input_ids[:max_length], side.sequence.loss_mask[:max_length])
    return Judged(sequence, sequence.input_ids[sequence.loss_mask].tolist())
