"""A prompt with one completion of it, rendered: what pairs and single judged rows are made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from posttrain.common.batch import Sequence
from posttrain.data.render import Renderer
from posttrain.data.rows import Row


@dataclass
class Judged:
    """A rendered completion."""

    sequence: Sequence
    completion: list[int]


def render(row: Row, renderer: Renderer) -> Judged:
    """The prompt with one completion, of which only the last assistant turns are its own."""
    prompt = row["prompt"]
    prompt_tokens = len(renderer.prompt_ids({"prompt": prompt}))
    if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
        raise ValueError("the prompt ends with the assistant's turn: it must end with another's")
    sequence = renderer.training_sequence(row)
    # earlier assistant turns belong to the prompt
    sequence.loss_mask &= torch.arange(len(sequence)) >= prompt_tokens
    return Judged(sequence, sequence.input_ids[sequence.loss_mask].tolist())


def is_empty(side: Judged, renderer: Renderer) -> bool:
    """Whether a completion has no token but stop tokens."""
    return not set(side.completion) - {*renderer.stop_token_ids}


def cut(side: Judged, max_length: int) -> Judged:
    sequence = Sequence(side.sequence.input_ids[:max_length], side.sequence.loss_mask[:max_length])
    return Judged(sequence, sequence.input_ids[sequence.loss_mask].tolist())
