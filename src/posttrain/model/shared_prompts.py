"""Running a prompt through the network once for all its completions (docs/decisions/0008)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.common.batch import Batch, cumulative
from posttrain.model.attention import Packed

NO_INDICES = torch.zeros(0, dtype=torch.int64)
ROWS = 32  # on a CPU the number of rows is padded to a multiple of this


@dataclass
class Rows:
    """The U tokens that run through the network, with a prompt that neighbours share only once."""

    input_ids: Tensor  # [U]
    position_ids: Tensor  # [U]
    layout: Packed
    places: Tensor  # [T] index in U of each token of the batch
    apart: bool = False
    """Whether every segment runs on its own."""

    def at_places(self, values: Tensor) -> Tensor:
        """Return values of the U tokens, or of this rank's part of them, as those of the batch."""
        part = self.layout.part
        return (values if part is None else part.whole(values)).index_select(0, self.places)

    def segments(self) -> list[Tensor]:
        """Return the ids of each segment."""
        return list(self.input_ids.split(self.layout.lengths)) if self.layout.lengths else []


def share_prompts(batch: Batch) -> Rows:
    """Return the rows of a batch.

    A state does not depend on later tokens, so all completions of a prompt continue from the same
    states, in which their gradients add up.
    """
    device = batch.input_ids.device
    lengths: list[int] = []
    prefixes: list[int | None] = []
    tokens: list[Tensor] = []  # the indices in T of each segment's tokens
    places: list[Tensor] = []
    start = used = 0
    for first, last in batch.runs():
        prompt = len(batch.prompts[first]) if last > first else 0
        prefix, prefix_at = None, used
        if prompt:
            prefix = len(lengths)
            lengths.append(prompt)
            prefixes.append(None)
            tokens.append(torch.arange(start, start + prompt))
            used += prompt
        for length in batch.lengths[first : last + 1]:
            rest = length - prompt
            lengths.append(rest)
            prefixes.append(prefix)
            tokens.append(torch.arange(start + prompt, start + length))
            places += [torch.arange(prefix_at, prefix_at + prompt), torch.arange(used, used + rest)]
            start, used = start + length, used + rest
    shared = used < batch.num_tokens
    chosen = torch.cat([NO_INDICES, *tokens]).to(device)
    if spare := padding_rows(chosen):  # a separate segment, whose states are not read
        lengths.append(spare)
        prefixes.append(None)
        chosen = torch.cat([chosen, chosen[:1].expand(spare)])
    layout = Packed(lengths, cumulative(lengths).to(device))
    if shared:
        keys = [n if p is None else lengths[p] + n for n, p in zip(lengths, prefixes)]
        layout.prefixes, layout.cu_keys = prefixes, cumulative(keys).to(device)
    return Rows(
        batch.input_ids[chosen],
        batch.position_ids[chosen],
        layout,
        torch.cat([NO_INDICES, *places]).to(device),
    )


def padding_rows(rows: Tensor) -> int:
    """Return how many rows to add to reach a multiple of ROWS; on a GPU, 0.

    oneDNN builds a kernel for each new shape, so shapes are reused.
    """
    return -len(rows) % ROWS if rows.device.type == "cpu" else 0
