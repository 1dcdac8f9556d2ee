"""`reward_model`: a scalar head on the last token's state, trained on pairs.

    L = mean over pairs of -log sigmoid(r_c - r_r - margin) + center_coef (r_c + r_r)^2

This is the Bradley-Terry model (Ouyang et al. 2022, arXiv 2203.02155, eq. 1) with the margin of
Llama 2 (arXiv 2307.09288, eq. 2), from the row's column `margin`, and the centring of Eisenstein et
al. 2023 (arXiv 2312.09244).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from posttrain.algorithms.base import Algorithm, Loss
from posttrain.algorithms.config import TrainerConfig
from posttrain.algorithms.preference import pair_metrics
from posttrain.common.lazy import F, torch
from posttrain.model.config import HeadKind

if TYPE_CHECKING:
    from posttrain.common.batch import Batch
    from posttrain.model.forward import Output


class RewardModelConfig(TrainerConfig):
    """A scalar head on the last token's state, trained on pairs by the Bradley-Terry model."""

    type: Literal["reward_model"] = "reward_model"
    learning_rate: float = Field(1e-5, ge=0)
    center_coef: float = Field(0.0, ge=0)
    """Weight of the term that keeps the mean of a pair's rewards near 0 (TRL:
    center_rewards_coefficient, 0.01)."""

    @property
    def head(self) -> HeadKind:
        """The score head."""
        return "score"

    @property
    def row_options(self) -> dict[str, Any]:
        """That loss masks stay empty: only the scores at the last tokens are read."""
        return {"score_only": True}


def bradley_terry(out: Output, batch: Batch, config: RewardModelConfig) -> Loss:
    """Return the loss of a micro-batch that holds chosen, rejected, chosen, ...

    A reward is the score at a sequence's last token.
    """
    assert out.scores is not None
    rewards = out.scores[batch.last_tokens()]
    chosen, rejected = rewards[0::2], rewards[1::2]
    margin = batch.per_seq["margin"][0::2]
    loss = -F.logsigmoid(chosen - rejected - margin)
    if config.center_coef > 0:
        loss = loss + config.center_coef * (chosen + rejected).square()
    count = float(len(chosen))
    # mean probability of the preferred side: equals rewards/accuracies if the model is calibrated
    confidence = torch.sigmoid((chosen - rejected).detach().abs())
    metrics = pair_metrics(rewards.detach())
    metrics["rewards/confidence"] = (confidence.sum(), count)
    return Loss({"pair": loss.sum()}, metrics)


reward_model = Algorithm(
    RewardModelConfig,
    bradley_terry,
    rows="pair",
    group_size=2,
)
