"""The parts of every algorithm: a pure loss that returns sums, and a hook `prepare` without grad.

The trainer divides each sum once, by the count of its unit over every micro-batch and every rank
of the optimiser step. That makes the gradient independent of micro-batch size, packing and the
number of ranks; means inside the losses would make it depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import SerializeAsAny

from posttrain.algorithms import ALGORITHMS
from posttrain.algorithms.config import TrainerConfig
from posttrain.common.lazy import torch
from posttrain.common.registry import look_up
from posttrain.config.base import ByType

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.common.batch import Batch
    from posttrain.model.forward import Output
    from posttrain.model.models import Models


def chosen_tokens(batch: Batch) -> float:
    """Return the number of trained tokens of good completions; without labels, of chosen ones."""
    tokens = batch.tokens_per_seq()
    if "label" in batch.per_seq:
        return float(tokens[batch.per_seq["label"] > 0].sum())
    return float(tokens[0::2].sum())


Unit = Literal["token", "sequence", "pair", "chosen_token"]
UNITS: dict[Unit, Callable[[Batch], float]] = {
    "token": lambda batch: float(batch.loss_mask.sum()),
    "sequence": lambda batch: float(batch.num_sequences),
    "pair": lambda batch: batch.num_sequences / 2,
    "chosen_token": chosen_tokens,
}


@dataclass
class Loss:
    """What a loss function returns for a micro-batch."""

    terms: dict[Unit, Tensor]  # SUMS over the micro-batch; divided by the global count of the unit
    metrics: dict[str, tuple[Tensor, Tensor | float]] = field(default_factory=dict)  # sum, count


@dataclass(frozen=True)
class Algorithm:
    """A training method; whatever depends on its keys is a property of its config."""

    config: type[TrainerConfig]
    loss: Callable[[Output, Batch, Any], Loss]
    """A pure function: it sees no model and no rank, and reads and writes nothing."""
    rows: str
    """The kind of data row it trains on, a name in `data.kinds.KINDS`."""
    prepare: Callable[[Batch, Models, Any], Batch] = lambda batch, models, config: batch
    """Adds what needs no grad, once per batch: reference and old log-probs, advantages."""
    needs_entropy: bool = False
    group_size: int = 1
    """Number of neighbouring sequences that must be in the same micro-batch (a pair: 2)."""
    after_step: Callable[[dict[str, float], Any], None] = lambda metrics, config: None
    """Adds metrics that follow from those of a step or an evaluation; raises ValueError if they
    show that the run is broken."""
    adapt: Callable[[dict[str, float], Any], dict[str, float]] = lambda metrics, config: {}
    """Returns the config keys to change, with the values that apply from the next step on."""

    @property
    def online(self) -> bool:
        """Whether completions are sampled from the policy during training."""
        return self.rows == "prompt"


def algorithm_named(name: str) -> Algorithm:
    """Return the entry of ALGORITHMS; raise ValueError with the nearest name if there is none."""
    algorithm: Algorithm = look_up(ALGORITHMS, name, f"no method {name!r}")
    return algorithm


def config_of(name: str) -> type[TrainerConfig]:
    """Return the config class of a method's trainer section."""
    return algorithm_named(name).config


TrainerSection = Annotated[SerializeAsAny[TrainerConfig], ByType(ALGORITHMS, config_of)]
"""The type of the trainer section: the class that its `type` chooses."""


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of x [T] under mask [T]; selects, since in a product 0 * inf would be nan."""
    return torch.where(mask, x, 0.0).sum()
