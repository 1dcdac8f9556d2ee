"""`process_reward_model`: a scalar head that predicts if each step of a completion is right.

    L = mean over steps of -log p_i for a right one, -log(1 - p_i) for a wrong one,
    p_i = sigmoid(r_i)

r_i is read at the token that closes step i: the separator's last token, or the stop token after the
last step. Uesato et al. 2022, arXiv 2211.14275; Lightman et al. 2023, arXiv 2305.20050, sec. 2.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from posttrain.algorithms.base import Algorithm, Loss
from posttrain.algorithms.config import TrainerConfig
from posttrain.common.lazy import F
from posttrain.config.base import AlsoCalled
from posttrain.model.config import HeadKind

if TYPE_CHECKING:
    from posttrain.common.batch import Batch
    from posttrain.model.forward import Output


class ProcessRewardModelConfig(TrainerConfig):
    """A scalar head that predicts if each step of a completion is right."""

    type: Literal["process_reward_model"] = "process_reward_model"
    learning_rate: float = Field(1e-5, ge=0)
    step_separator: Annotated[str, AlsoCalled("placeholder_token")] = Field("\n", min_length=1)
    """The text between two steps of a completion. It is saved with the model, which as a reward
    splits completions at it."""

    @property
    def head(self) -> HeadKind:
        """The score head."""
        return "score"

    @property
    def row_options(self) -> dict[str, Any]:
        """The separator of steps."""
        return {"separator": self.step_separator}


def step_cross_entropy(out: Output, batch: Batch, config: ProcessRewardModelConfig) -> Loss:
    """Return the binary cross-entropy of the steps.

    The loss mask marks the tokens that close a step. There `per_token["label"]` is 1 for a right
    step and 0 for a wrong one, and `out.scores` is the logit of a right one."""
    assert out.scores is not None
    logits = out.scores[batch.loss_mask]
    labels = batch.per_token["label"][batch.loss_mask].to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    right, predicted = labels > 0, logits.detach() > 0
    probability = logits.detach().sigmoid()
    return Loss(
        {"token": loss},
        {
            "accuracy": ((predicted == right).sum(), float(len(labels))),
            "probability/right": (probability[right].sum(), right.sum()),
            "probability/wrong": (probability[~right].sum(), (~right).sum()),
        },
    )


process_reward_model = Algorithm(
    ProcessRewardModelConfig,
    step_cross_entropy,
    rows="steps",
)
