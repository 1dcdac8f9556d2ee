"""`ppo`: a value model in place of a group's mean (Schulman et al. 2017, arXiv 1707.06347).

    l_t = - surrogate(r_t, A_t) + value_coef / 2 max((V_t - G_t)^2, (clip(V_t) - G_t)^2)

A_t and G_t come from generalised advantage estimation over the completion's own tokens. The reward
is given at the last of them, and beta times the KL estimate is subtracted at each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from posttrain.algorithms.advantages import gae, whiten
from posttrain.algorithms.base import Algorithm, Loss, masked_sum
from posttrain.algorithms.kl import Estimator
from posttrain.algorithms.policy_gradient import (
    PolicyGradientConfig,
    adapt_beta,
    check_sampler,
    kl_penalty,
    policy_gradient,
)
from posttrain.common.lazy import torch
from posttrain.model.config import HEAD_PREFIXES, HeadKind

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.common.batch import Batch
    from posttrain.model.forward import Output
    from posttrain.model.models import Models


class PPOConfig(PolicyGradientConfig):
    """Proximal policy optimisation with a value model (Schulman et al. 2017, arXiv 1707.06347)."""

    type: Literal["ppo"] = "ppo"
    baseline: Literal["value"] = "value"  # type: ignore[assignment]
    scale_rewards: Literal["none"] = "none"
    whiten_advantages: bool = True
    kl_in: Literal["token_reward", "loss"] = "token_reward"
    kl_estimator: Estimator = "k1"
    kl_logprobs: Literal["policy"] = "policy"
    """Always those of the forward pass that gives the old values."""
    value_model: Literal["own", "shared"] = "own"
    """own: a network that starts as a copy of the policy's; shared: a head on the policy's."""
    value_learning_rate: float | None = Field(None, gt=0)
    """Learning rate of the value model; by default that of the policy."""
    value_coef: float = Field(0.5, gt=0)
    """Weight of the value loss."""
    value_clip: float | None = Field(0.2, gt=0)
    """How far a value may move from its old value before its loss stops falling; null: no limit."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount of later rewards, per token."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation: 1 is Monte Carlo, 0 one step."""
    num_inner_epochs: int = Field(4, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _no_preset(cls, section: Any) -> Any:
        if isinstance(section, dict) and section.get("preset") is not None:
            raise ValueError(
                "trainer.preset: presets choose a baseline among completions, but ppo has its "
                "value model: set the keys themselves (docs/methods.md), or use grpo"
            )
        return section

    @property
    def head(self) -> HeadKind:
        """The value head."""
        return "value"

    @property
    def own_value_network(self) -> bool:
        """Whether value_model is own."""
        return self.value_model == "own"

    @property
    def learning_rates(self) -> dict[str, float]:
        """Parameter-name prefixes of the value model -> value_learning_rate, if that is set."""
        if self.value_learning_rate is None:
            return {}
        return dict.fromkeys(HEAD_PREFIXES, self.value_learning_rate)

    @property
    def compares_completions(self) -> bool:
        """False: the baseline is the value of a state."""
        return False


def ppo_loss(out: Output, batch: Batch, config: PPOConfig) -> Loss:
    """Return the policy-gradient loss of a micro-batch plus the value loss."""
    loss = policy_gradient(out, batch, config)
    assert out.values is not None
    mask, returns, old = batch.loss_mask, batch.per_token["returns"], batch.per_token["old_values"]
    error = (out.values - returns).square()
    clipped = torch.zeros_like(mask)
    if config.value_clip is not None:
        near = old + (out.values - old).clamp(-config.value_clip, config.value_clip)
        clipped = (near - returns).square() > error
        error = torch.max(error, (near - returns).square())
    value_loss = masked_sum(error, mask) / 2
    loss.terms["token"] = loss.terms.get("token", torch.zeros(())) + config.value_coef * value_loss
    count, residual = mask.sum(), returns - old
    loss.metrics |= {
        "value_loss": (value_loss.detach(), count),
        "value_clip_ratio": ((clipped & mask).sum(), count),
        "values": (masked_sum(out.values.detach(), mask), count),
        "returns": (masked_sum(returns, mask), count),
        "returns_square": (masked_sum(returns.square(), mask), count),
        "value_error": (masked_sum(residual, mask), count),
        "value_error_square": (masked_sum(residual.square(), mask), count),
    }
    return loss


def prepare(batch: Batch, models: Models, config: PPOConfig) -> Batch:
    """Add old log-probs and values, reference log-probs, advantages and returns."""
    old = models.outputs(batch, config.token_budget, values=True)
    assert old.values is not None
    assert old.last_values is not None
    batch.per_token["old_logprobs"], batch.per_token["old_values"] = old.logprobs, old.values
    if config.beta > 0:
        with models.reference():
            reference = models.logprobs(batch, config.token_budget)
        batch.per_token["ref_logprobs"] = reference
    truncated = batch.per_seq["truncated"].bool()
    # a completion that was cut off did not end: its last state is not terminal and has a value
    bootstrap = torch.where(truncated, old.last_values, 0.0)
    advantages, returns = gae(
        token_rewards(batch, config), old.values, bootstrap, batch, config.gamma, config.gae_lambda
    )
    # without a reward there is no return: such a completion is counted but not trained on
    scored = ~batch.per_seq["rewards"].isnan()
    batch.per_seq["active"] = scored
    if config.whiten_advantages:
        advantages = whiten(advantages, batch.loss_mask & batch.expand(scored))
    batch.per_token["advantages"], batch.per_token["returns"] = advantages, returns
    if config.mask_truncated_completions:
        batch = batch.select((~truncated).nonzero()[:, 0].tolist())
    return batch


def token_rewards(batch: Batch, config: PPOConfig) -> Tensor:
    """Return the reward at a completion's last token minus beta times the KL at each token, [T]."""
    rewards = torch.zeros_like(batch.per_token["old_logprobs"])
    last = batch.last_tokens()
    score = batch.per_seq["rewards"].nan_to_num(0.0)
    rewards[last] = (score - config.missing_eos_penalty * batch.per_seq["truncated"]).to(rewards)
    if config.beta > 0 and config.kl_in == "token_reward":
        rewards = rewards - kl_penalty(batch, config)
    return rewards


def explain_variance(metrics: dict[str, float], config: PPOConfig) -> None:
    """Check the sampler, and add 1 - Var(G - V) / Var(G) with the old values V."""
    check_sampler(metrics, config)
    error_std = metrics.pop("value_error_std", 0.0)
    metrics.pop("value_error", None)
    returns_std = metrics.get("returns_std", 0.0)
    if returns_std > 0:
        metrics["explained_variance"] = 1 - (error_std / returns_std) ** 2


ppo = Algorithm(
    PPOConfig,
    ppo_loss,
    rows="prompt",
    prepare=prepare,
    needs_entropy=True,
    after_step=explain_variance,
    adapt=adapt_beta,
)
