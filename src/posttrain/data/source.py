"""Rows in a seeded order, a global batch at a time, shared out over the ranks."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch

from posttrain.common.batch import Batch, Example, pack, sequences_of
from posttrain.common.metrics import Metrics
from posttrain.common.seeds import mix


class Source(Protocol):
    """The seam between offline rows and rollouts. One batch feeds one step of the trainer."""

    steps_per_epoch: int

    def next_batch(self) -> tuple[Batch, Metrics]:
        """This rank's share of the next global batch, and what there is to log about it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """A collective: the state of all ranks."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def settle(self) -> None:
        """Finish whatever goes on beside the training."""
        ...

    def close(self) -> None:
        """Give up whatever goes on beside the training."""
        ...


class EpochOrder:
    """Which items make up global batch number `step`: a new permutation for every epoch.

    A pure function of the seed and the step, so that resuming needs the step alone, and the same
    for any number of ranks. The last batch of an epoch may be smaller.
    """

    def __init__(self, num_items: int, batch_size: int, seed: int) -> None:
        self.num_items, self.batch_size, self.seed = num_items, batch_size, seed
        self.steps_per_epoch = math.ceil(num_items / batch_size)

    def indices(self, step: int) -> list[int]:
        epoch, position = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        order = torch.randperm(self.num_items, generator=generator)
        return order[position * self.batch_size : (position + 1) * self.batch_size].tolist()


class OfflineSource:
    def __init__(
        self, examples: list[Example], batch_size: int, seed: int, rank: int, num_ranks: int
    ) -> None:
        self.examples = examples
        self.order = EpochOrder(len(examples), batch_size, seed)
        self.steps_per_epoch = self.order.steps_per_epoch
        self.rank, self.num_ranks = rank, num_ranks
        self.step = 0

    def next_batch(self) -> tuple[Batch, Metrics]:
        chosen = self.order.indices(self.step)
        self.step += 1
        mine = [self.examples[i] for i in chosen[self.rank :: self.num_ranks]]
        return pack(sequences_of(mine)), {}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]

    def settle(self) -> None:
        pass

    def close(self) -> None:
        pass
