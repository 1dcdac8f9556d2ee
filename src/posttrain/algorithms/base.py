"""What every algorithm is made of: a pure loss that returns sums, and a preparation without grad.

The trainer divides each sum once, by the count of its unit over every micro-batch and every rank
of the optimiser step. That makes the gradient independent of micro-batch size, packing and the
number of ranks; a mean taken inside a loss would not be.
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
    """Trained tokens of the completions whose label is good, or of every other sequence, beginning
    with the first."""
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
    terms: dict[Unit, Tensor]  # SUMS over the micro-batch; divided by the global count of the unit
    metrics: dict[str, tuple[Tensor, Tensor | float]] = field(default_factory=dict)  # sum, count


@dataclass(frozen=True)
class Algorithm:
    """A training method. What depends on its keys is a property of its config."""

    config: type[TrainerConfig]
    loss: Callable[[Output, Batch, Any], Loss]
    """Pure: no model, no rank, no input or output."""
    rows: str
    """The kind of data row it trains on, a name in `data.kinds.KINDS`."""
    prepare: Callable[[Batch, Models, Any], Batch] = lambda batch, models, config: batch
    """Without grad, once per batch: reference and old log-probs, advantages."""
    needs_entropy: bool = False
    group_size: int = 1
    """Neighbouring sequences that one micro-batch must hold together (a pair: 2)."""
    after_step: Callable[[dict[str, float], Any], None] = lambda metrics, config: None
    """Adds metrics that follow from the step's; raises ValueError if they show that the run is
    broken."""
    adapt: Callable[[dict[str, float], Any], dict[str, float]] = lambda metrics, config: {}
    """Returns keys of the config with the values that the loss sees from the next step on."""

    @property
    def online(self) -> bool:
        """Whether completions are sampled from the policy during training."""
        return self.rows == "prompt"


def algorithm_named(name: str) -> Algorithm:
    """Return the entry of ALGORITHMS; raise ValueError with the nearest name if there is none."""
    found: Algorithm = look_up(ALGORITHMS, name, f"no method {name!r}")
    return found


def config_of(name: str) -> type[TrainerConfig]:
    """Return the class of a method's trainer section."""
    return algorithm_named(name).config


TrainerSection = Annotated[SerializeAsAny[TrainerConfig], ByType(ALGORITHMS, config_of)]
"""The type of the trainer section: the class that its `type` chooses."""


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of x [T] where mask [T]; selects rather than multiplies, since 0 * inf is nan."""
    return torch.where(mask, x, 0.0).sum()
