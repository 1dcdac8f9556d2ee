"""The rows of a batch with the positions that ReFT edits in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from posttrain.common.batch import Batch
from posttrain.model.reft.positions import Positions
from posttrain.model.shared_prompts import Rows, share_prompts


def edited_rows(batch: Batch, positions: Positions, whole: bool) -> Rows:
    """Return the rows of a batch with their edited positions: of the prompts, once each.

    With `whole`, those of the whole sequences, which then share no prompt: its last tokens are
    edited in a short completion and not in a long one.
    """
    if whole:
        batch = dataclasses.replace(batch, prompts=[()] * batch.num_sequences)
    rows = share_prompts(batch)
    lengths = batch.lengths if whole else [len(prompt) for prompt in batch.prompts]
    starts = [0, *accumulate(batch.lengths)]
    apart = [i for i in range(batch.num_sequences) if not batch.shares_prompt(i)]
    prefix, suffix = _indices([starts[i] for i in apart], [lengths[i] for i in apart], positions)
    device = rows.places.device
    rows.layout.edited = rows.places[prefix.to(device)], rows.places[suffix.to(device)]
    return rows


def edited_prompts(
    lengths: Sequence[int], positions: Positions, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the edited positions of prompts end to end: at their starts and at their ends."""
    prefix, suffix = _indices([0, *accumulate(lengths)][:-1], lengths, positions)
    return prefix.to(device), suffix.to(device)


def _indices(
    starts: Sequence[int], lengths: Sequence[int], positions: Positions
) -> tuple[Tensor, Tensor]:
    prefix: list[int] = []
    suffix: list[int] = []
    for start, length in zip(starts, lengths):
        first, last = positions.split(length)
        prefix += (start + p for p in first)
        suffix += (start + p for p in last)
    return torch.tensor(prefix, dtype=torch.int64), torch.tensor(suffix, dtype=torch.int64)
