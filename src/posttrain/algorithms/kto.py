"""`kto`: single good or bad completions, no pairs (Ethayarajh et al. 2024, arXiv 2402.01306).

    L = mean over rows of  w_+ (1 - sigmoid(beta (s - z)))   for a good completion
                           w_- (1 - sigmoid(beta (z - s)))   for a bad one

s is the summed log-ratio to the reference. z estimates the policy's KL from the reference: the mean
of the same log-ratio over unrelated pairs, each a prompt with the completion of the nearest earlier
row that has another prompt; z is at least 0 and has no gradient (eqs. 7 and 8). These pairs come
from the data set, so z is also right for batches of one class or of size 1; the mean is over the
whole optimiser step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from posttrain.algorithms.base import Algorithm, Loss, Unit, masked_sum
from posttrain.algorithms.config import TrainerConfig
from posttrain.algorithms.preference import mean_over_ranks
from posttrain.common.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.common.batch import Batch
    from posttrain.model.forward import Output
    from posttrain.model.models import Models


class KTOConfig(TrainerConfig):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306)."""

    type: Literal["kto"] = "kto"
    learning_rate: float = Field(1e-6, ge=0)
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    """kto, or apo_zero_unpaired (arXiv 2408.06266): the same with z = 0."""
    beta: float = Field(0.1, gt=0)
    """Strength of the pull to the reference."""
    desirable_weight: float = Field(1.0, ge=0)
    """Weight w_+ of good completions; the paper keeps w_+ n_+ / (w_- n_-) between 1 and 4/3."""
    undesirable_weight: float = Field(1.0, ge=0)
    """Weight w_- of bad completions."""
    sft_coef: float = Field(0.0, ge=0)
    """Weight of the good completions' negative log-likelihood, a mean over their tokens."""
    precompute_reference: bool = False
    """Compute the reference log-probs of all rows before the first step."""

    @property
    def needs_reference(self) -> bool:
        """Whether no reference log-probs are precomputed."""
        return not self.precompute_reference

    @property
    def precomputes_reference(self) -> bool:
        """The key precompute_reference."""
        return self.precompute_reference

    @property
    def row_options(self) -> dict[str, Any]:
        """Whether each row comes with the unrelated pair that z is estimated on."""
        return {"with_unrelated": self.loss_type == "kto"}


def kto_loss(out: Output, batch: Batch, config: KTOConfig) -> Loss:
    """Return the loss of a micro-batch of single completions.

    `per_seq["label"]` is 1 for a good completion and 0 for a bad one, `per_seq["kl"]` is z.
    """
    good = batch.per_seq["label"] > 0
    logps = batch.sum_per_seq(out.logprobs)
    score = batch.sum_per_seq(out.logprobs - batch.per_token["ref_logprobs"])
    z = batch.per_seq["kl"]
    if_good = config.desirable_weight * (1 - torch.sigmoid(config.beta * (score - z)))
    if_bad = config.undesirable_weight * (1 - torch.sigmoid(config.beta * (z - score)))
    loss = torch.where(good, if_good, if_bad).sum()
    rewards, logps = config.beta * score.detach(), logps.detach()
    metrics: dict[str, tuple[Tensor, Tensor | float]] = {"kl": (z.sum(), float(len(z)))}
    for name, rows in (("chosen", good), ("rejected", ~good)):
        metrics[f"rewards/{name}"] = (rewards[rows].sum(), rows.sum())
        metrics[f"logps/{name}"] = (logps[rows].sum(), rows.sum())
    terms: dict[Unit, Tensor] = {"sequence": loss}
    good_tokens = batch.expand(good) & batch.loss_mask
    nll = -masked_sum(out.logprobs, good_tokens)
    if config.sft_coef > 0:
        terms["chosen_token"] = config.sft_coef * nll
    metrics["nll_loss"] = (nll.detach(), good_tokens.sum())
    return Loss(terms, metrics)


def prepare(batch: Batch, models: Models, config: KTOConfig) -> Batch:
    """Add reference log-probs and z; drop the unrelated pairs, which are there for z alone."""
    if "ref_logprobs" not in batch.per_token:
        with models.reference():
            batch.per_token["ref_logprobs"] = models.logprobs(batch, config.token_budget)
    if config.loss_type != "kto":
        batch.per_seq["kl"] = torch.zeros_like(batch.per_seq["label"])
        return batch
    # each row is followed by its unrelated pair
    rows = batch.num_sequences // 2
    unrelated = batch.select(range(1, 2 * rows, 2))
    logprobs = models.logprobs(unrelated, config.token_budget)
    z = mean_over_ranks(unrelated.sum_per_seq(logprobs - unrelated.per_token["ref_logprobs"]))
    batch = batch.select(range(0, 2 * rows, 2))
    batch.per_seq["kl"] = torch.full_like(batch.per_seq["label"], max(0.0, z))
    return batch


def margins(metrics: dict[str, float], config: KTOConfig) -> None:
    """Add the mean reward of good completions minus that of bad ones, if a step has both."""
    if "rewards/chosen" in metrics and "rewards/rejected" in metrics:
        metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]


kto = Algorithm(
    KTOConfig,
    kto_loss,
    rows="unpaired",
    prepare=prepare,
    after_step=margins,
)
