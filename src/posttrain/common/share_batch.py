"""The batches of the ranks of a share, put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from posttrain.common.batch import Batch, cumulative
from posttrain.common.mesh import current


def share_batch(batch: Batch) -> Batch:
    """Return the batches of all ranks of a share as one, the same on each. A collective."""
    mesh = current()
    if mesh.per_share == 1:
        return batch
    parts: list[Any] = [None] * mesh.per_share
    torch.distributed.all_gather_object(parts, batch.to("cpu"), group=mesh.share_group)
    return joined(parts)


def joined(parts: Sequence[Batch]) -> Batch:
    """Return the sequences of several batches, which have the same names, as one batch."""
    first, lengths = parts[0], [length for part in parts for length in part.lengths]
    return Batch(
        input_ids=torch.cat([part.input_ids for part in parts]),
        position_ids=torch.cat([part.position_ids for part in parts]),
        cu_seqlens=cumulative(lengths).to(first.cu_seqlens.device),
        loss_mask=torch.cat([part.loss_mask for part in parts]),
        lengths=lengths,
        prompts=[prompt for part in parts for prompt in part.prompts],
        per_token={n: torch.cat([part.per_token[n] for part in parts]) for n in first.per_token},
        per_seq={n: torch.cat([part.per_seq[n] for part in parts]) for n in first.per_seq},
    )
