"""Rows in a seeded order, one global batch at a time, divided over the ranks."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch

from posttrain.common.batch import Batch, Example, pack_share
from posttrain.common.metrics import Metrics
from posttrain.common.seeds import mix


class Source(Protocol):
    """What the trainer reads, from offline rows or rollouts: one batch for each training step."""

    steps_per_epoch: int

    def next_batch(self) -> tuple[Batch, Metrics]:
        """Return this rank's share of the next global batch, and metrics about it."""

    def prepared(self, batch: Batch) -> None:
        """Take note of the last batch, after the algorithm has prepared it."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all ranks; a collective call."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what state_dict() returned."""

    def settle(self) -> None:
        """Wait until no work runs in the background."""

    def close(self) -> None:
        """Stop work in the background."""


class EpochOrder:
    """The items of global batch number `step`, from a new permutation in every epoch.

    A pure function of the seed and the step, so that resuming needs only the step, and the same for
    any number of ranks. The last batch of an epoch may be smaller.
    """

    def __init__(self, num_items: int, batch_size: int, seed: int) -> None:
        self.num_items, self.batch_size, self.seed = num_items, batch_size, seed
        self.steps_per_epoch = math.ceil(num_items / batch_size)

    def indices(self, step: int) -> list[int]:
        """Return the indices of the items in global batch `step`."""
        epoch, position = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        order = torch.randperm(self.num_items, generator=generator)
        return order[position * self.batch_size : (position + 1) * self.batch_size].tolist()


class OfflineSource:
    """Batches of examples that are in memory, in `EpochOrder`."""

    def __init__(
        self, examples: list[Example], batch_size: int, seed: int, rank: int, num_ranks: int
    ) -> None:
        self.examples = examples
        self.order = EpochOrder(len(examples), batch_size, seed)
        self.steps_per_epoch = self.order.steps_per_epoch
        self.rank, self.num_ranks = rank, num_ranks
        self.step = 0

    def next_batch(self) -> tuple[Batch, Metrics]:
        """Return this rank's share of the next global batch; there are no metrics."""
        chosen = self.order.indices(self.step)
        self.step += 1
        mine = [self.examples[i] for i in chosen[self.rank :: self.num_ranks]]
        return pack_share(mine, self.examples), {}

    def prepared(self, batch: Batch) -> None:
        """Do nothing: rows are known beforehand."""

    def state_dict(self) -> dict[str, Any]:
        """Return the number of batches taken."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches counted in `state`."""
        self.step = state["step"]

    def settle(self) -> None:
        """Do nothing: no work runs in the background."""

    def close(self) -> None:
        """Do nothing: no work runs in the background."""
