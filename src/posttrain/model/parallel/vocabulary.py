"""Log-softmax over a vocabulary that is split over ranks: no rank holds all logits of a token.

Each function takes the shard of this rank, or None for a whole vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from posttrain.model.parallel.collectives import summed


@dataclass(frozen=True)
class VocabShard:
    """The rows of the output head and of the embedding that this rank holds."""

    sizes: tuple[int, ...]  # rows of each rank
    group: ProcessGroup

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.sizes[self.group.rank()]

    @property
    def first(self) -> int:
        """Token of the first row."""
        return sum(self.sizes[: self.group.rank()])

    def local(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of token ids among this rank's, 0 for those of others, and which are."""
        places = ids - self.first
        inside = (places >= 0) & (places < self.size)
        return places.where(inside, 0), inside


def logsumexp(logits: Tensor, shard: VocabShard | None) -> Tensor:
    """Return log(sum(exp(logits))) [M] over the whole vocabulary."""
    if shard is None:
        return logits.logsumexp(-1)
    top = logits.amax(-1) if logits.shape[-1] else logits.new_full(logits.shape[:-1], -torch.inf)
    torch.distributed.all_reduce(top, torch.distributed.ReduceOp.MAX, group=shard.group)
    total = summed_over((logits - top[:, None]).exp_().sum(-1), shard)
    return top + total.log()


def summed_over(x: Tensor, shard: VocabShard | None) -> Tensor:
    """Return the sum of the ranks' x, in place."""
    if shard is not None:
        torch.distributed.all_reduce(x, group=shard.group)
    return x


def whole(logits: Tensor, shard: VocabShard) -> Tensor:
    """Return the logits [M, vocab] of all ranks, for few rows and without gradients."""
    widest = max(shard.sizes)  # that a gather takes equal parts
    own = torch.nn.functional.pad(logits, (0, widest - shard.size)).contiguous()
    parts = [torch.empty_like(own) for _ in shard.sizes]
    torch.distributed.all_gather(parts, own, group=shard.group)
    return torch.cat([part[:, :size] for part, size in zip(parts, shard.sizes)], dim=-1)


def at_targets(values: Tensor, targets: Tensor, shard: VocabShard | None) -> Tensor:
    """Return values [M, vocab] at the targets [M], [M]."""
    if shard is None:
        return values.gather(1, targets[:, None])[:, 0]
    places, inside = shard.local(targets)
    own = values.gather(1, places[:, None])[:, 0].where(inside, 0.0)
    return summed_over(own, shard)


def add_at_targets(grad: Tensor, targets: Tensor, x: Tensor, shard: VocabShard | None) -> None:
    """Add x [M] to grad [M, vocab] at the targets [M]."""
    if shard is not None:
        targets, inside = shard.local(targets)
        x = x.where(inside, 0.0)
    grad.scatter_add_(1, targets[:, None], x[:, None])


def on_this_rank(tensor: Tensor | None) -> Any:
    """Return this rank's part of a sharded tensor, differentiable; another tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def rows_of_vocabulary(
    ids: list[int] | None, shard: VocabShard | None, dtype: torch.dtype, numbers: Tensor | None
) -> Any:
    """Return the rows of these token ids, of a weight [vocab, width] or a bias [vocab], or None.

    They are the same on all ranks. The gradient of each row is left on the rank that holds it."""
    if numbers is None:
        return None
    if shard is None:
        return numbers[ids].to(dtype)
    places, inside = shard.local(torch.tensor(ids, device=numbers.device))
    mask = inside.view(-1, *[1] * (numbers.dim() - 1))
    return summed(numbers[places].where(mask, 0.0), shard.group).to(dtype)
