"""Next-token prediction: `pretrain` on every token of a text, `sft` on the completion alone.

L = - sum_t log p(y_t | y_<t) / (number of trained tokens of the whole optimiser step)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from posttrain.algorithms.base import Algorithm, Loss
from posttrain.algorithms.config import TrainerConfig

if TYPE_CHECKING:
    from posttrain.common.batch import Batch
    from posttrain.model.forward import Output


class PretrainConfig(TrainerConfig):
    """Continued pre-training: next-token prediction on every token of a text."""

    type: Literal["pretrain"] = "pretrain"


class SFTConfig(TrainerConfig):
    """Supervised fine-tuning: next-token prediction on the completion alone."""

    type: Literal["sft"] = "sft"


def negative_log_likelihood(out: Output, batch: Batch, config: TrainerConfig) -> Loss:
    """Return the negative log-likelihood of the trained tokens."""
    nll = -out.logprobs.sum()  # positions outside the loss mask hold 0
    return Loss({"token": nll})


pretrain = Algorithm(PretrainConfig, negative_log_likelihood, rows="text")
sft = Algorithm(SFTConfig, negative_log_likelihood, rows="completion")
