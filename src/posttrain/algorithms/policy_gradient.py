"""Policy gradient on sampled completions: `grpo`, `rloo`, `reinforce`.

There is one loss. A method is a set of defaults for its choices, and every choice is a key.

    l_t = - w_t surrogate(r_t, A_t) + beta kl_t - entropy_coef H_t

r_t is the probability ratio to pi_old, the policy before the first update on the batch; A_t is the
advantage; w_t corrects for a sampler that differs from pi_old. docs/methods.md has the formula and
source of each choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from posttrain.algorithms.advantages import Baseline, Scale, advantages_of, to_go, whiten
from posttrain.algorithms.base import Algorithm, Loss, Unit, masked_sum
from posttrain.algorithms.config import TrainerConfig
from posttrain.algorithms.kl import ESTIMATORS, Estimator
from posttrain.algorithms.presets import expand
from posttrain.algorithms.surrogates import SURROGATES, Surrogate
from posttrain.common.lazy import torch
from posttrain.config.base import AlsoCalled

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.common.batch import Batch
    from posttrain.model.forward import Output
    from posttrain.model.models import Models


MAX_LOGPROB_DIFFERENCE = {"float32": 0.05, "bfloat16": 0.15}
"""trainer.max_logprob_difference by compute dtype, if it is not set."""


class PolicyGradientConfig(TrainerConfig):
    """The choices of a policy gradient on sampled completions."""

    learning_rate: float = Field(1e-6, ge=0)
    preset: str | None = None
    """A named set of the choices below (docs/methods.md); keys that are also given override it."""
    baseline: Baseline = "group_mean"
    """What is subtracted from a reward: the mean of its group, or of the group's other members."""
    scale_rewards: Scale = "group"
    """What the advantage is divided by: the standard deviation of the rewards of the group, of the
    group's other members, of the whole step, or nothing (Dr. GRPO)."""
    scale_ddof: Literal[0, 1] = 1
    """Delta degrees of freedom of that standard deviation: 1 divides by n - 1."""
    scale_eps: float = Field(1e-4, ge=0)
    """Added to that standard deviation."""
    whiten_advantages: bool = False
    """Give advantages mean 0 and variance 1 over all tokens of the step, after everything else."""
    ratio_level: Literal["token", "sequence", "sequence_sum"] = "token"
    """The ratio is exp of the token's log-ratio, or of its mean (GSPO) or sum per completion."""
    surrogate: Surrogate = "clip"
    """The objective in place of ratio times advantage: PPO's clip, CISPO's weighted log-prob,
    SAPO's soft gate, or VESPO's weight."""
    epsilon: Annotated[float, AlsoCalled("clip_ratio")] = Field(0.2, gt=0, le=1)
    """Lower bound of the ratio: 1 - epsilon."""
    epsilon_high: float | None = Field(None, gt=0)
    """Upper bound of the ratio: 1 + epsilon_high; by default epsilon (DAPO's clip-higher: 0.28)."""
    dual_clip: float | None = Field(None, gt=1)
    """Bounds the loss of a token with negative advantage A at dual_clip x |A|."""
    reduction: Annotated[
        Literal["token", "sequence", "sequence_sum", "constant"], AlsoCalled("loss_type")
    ] = "token"
    """token: mean over all tokens of the step (DAPO); sequence: mean per completion, then over
    completions (the GRPO paper); sequence_sum: sum per completion, then the mean over completions;
    constant: sequence_sum divided by max_new_tokens (Dr. GRPO)."""
    beta: Annotated[float, AlsoCalled("kl_coef")] = Field(0.0, ge=0)
    """Coefficient of the KL penalty to the reference; with 0 there is no reference."""
    kl_target: float | None = Field(None, gt=0)
    """KL in nats per token that beta is adapted to reach; by default beta is constant."""
    kl_gain: float = Field(0.1, gt=0, lt=5)
    """How fast beta adapts: by up to 0.2 x kl_gain of itself in a step."""
    kl_in: Literal["loss", "reward", "token_reward"] = "loss"
    """Where the KL penalty goes. loss: a term with its own gradient; reward: its sum is subtracted
    from the completion's reward, before the baseline; token_reward: it is subtracted token by
    token, so a token's advantage bears the penalties from there to the end."""
    kl_estimator: Estimator = "k3"
    """k1: log-ratio; k2: half its square; k3: unbiased and never negative (Schulman 2020)."""
    kl_logprobs: Literal["sampler", "policy"] = "sampler"
    """The policy's log-probs in a KL in the reward: those recorded at sampling, or those of a
    forward pass, an extra one if there is one update per batch."""
    entropy_coef: float = Field(0.0, ge=0)
    """Coefficient of the entropy bonus, a mean over tokens whatever the reduction."""
    sampler_correction: Literal["none", "token", "sequence", "sequence_sum"] = "none"
    """Weight each token by w = exp(log pi_old - log pi_sampler): the token's own, or the
    completion's (geometric mean or product)."""
    sampler_correction_mode: Literal["truncate", "mask"] = "truncate"
    """What becomes of a weight w outside its bounds: the bound, or 0."""
    sampler_correction_min: float = Field(0.0, ge=0)
    """Lower bound of the weight w."""
    sampler_correction_max: float = Field(2.0, gt=0)
    """Upper bound of the weight w."""
    mask_truncated_completions: bool = False
    """Completions cut off at max_new_tokens count in the baseline but are not trained on."""
    missing_eos_penalty: float = Field(0.0, ge=0)
    """Subtracted from the reward of a completion that was cut off."""
    num_inner_epochs: Annotated[int, AlsoCalled("num_iterations", "num_ppo_epochs")] = Field(
        1, ge=1
    )
    """Passes over each batch of rollouts (mu in the GRPO paper)."""
    num_minibatches: int = Field(1, ge=1)
    """Optimiser steps in each pass over a batch of rollouts, which has num_minibatches x batch_size
    prompts."""
    max_logprob_difference: float | None = Field(None, gt=0)
    """Stop the run if sampler and trainer differ by more nats per token than this, on average. By
    default 0.05 in fp32 and 0.15 in bf16, whose rounding on a GPU depends on the batch."""

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, section: Any) -> Any:
        return expand(section, cls.model_fields) if isinstance(section, dict) else section

    @model_validator(mode="after")
    def _consistent(self) -> PolicyGradientConfig:
        if self.sampler_correction_min > self.sampler_correction_max:
            raise ValueError("trainer.sampler_correction_min is above sampler_correction_max")
        if self.kl_target is not None and self.beta == 0:
            raise ValueError("trainer.kl_target adapts beta: set trainer.beta to its first value")
        return self

    @property
    def updates(self) -> tuple[int, int]:
        """Passes over one batch of rollouts, and optimiser steps in each pass."""
        return self.num_inner_epochs, self.num_minibatches

    @property
    def num_updates(self) -> int:
        """Optimiser steps on one batch of rollouts."""
        return self.num_inner_epochs * self.num_minibatches

    @property
    def needs_reference(self) -> bool:
        """Whether there is a KL penalty."""
        return self.beta > 0

    @property
    def corrects_for_sampler(self) -> bool:
        """Whether tokens are weighted by pi_old / pi_sampler."""
        return self.sampler_correction != "none"

    @property
    def compares_completions(self) -> bool:
        """Whether the baseline or the scale is that of a group."""
        return self.baseline != "none" or self.scale_rewards in ("group", "leave_one_out")


class GRPOConfig(PolicyGradientConfig):
    """Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300)."""

    type: Literal["grpo"] = "grpo"


class RLOOConfig(PolicyGradientConfig):
    """REINFORCE leave-one-out, per completion (Ahmadian et al. 2024, arXiv 2402.14740)."""

    type: Literal["rloo"] = "rloo"
    baseline: Baseline = "leave_one_out"
    scale_rewards: Scale = "none"
    ratio_level: Literal["token", "sequence", "sequence_sum"] = "sequence_sum"
    reduction: Literal["token", "sequence", "sequence_sum", "constant"] = "sequence"
    kl_in: Literal["loss", "reward", "token_reward"] = "reward"
    kl_estimator: Estimator = "k1"


class ReinforceConfig(PolicyGradientConfig):
    """REINFORCE++ (Hu 2025, arXiv 2501.03262).

    Its baseline form is `baseline: group_mean, kl_in: loss, kl_estimator: k2`."""

    type: Literal["reinforce"] = "reinforce"
    baseline: Baseline = "none"
    scale_rewards: Scale = "none"
    whiten_advantages: bool = True
    kl_in: Literal["loss", "reward", "token_reward"] = "token_reward"
    kl_estimator: Estimator = "k1"


def policy_gradient(out: Output, batch: Batch, config: PolicyGradientConfig) -> Loss:
    """Return the loss of a micro-batch of rollouts, as the module's docstring defines it."""
    mask, logprobs = batch.loss_mask, out.logprobs
    # with one update per batch, the ratio is 1 by construction, but its gradient is not 0
    old = batch.per_token.get("old_logprobs", logprobs.detach())
    advantages = batch.per_token["advantages"]
    ratio = torch.exp(at_level(logprobs - old, batch, config.ratio_level))
    objective, cut = SURROGATES[config.surrogate](ratio, logprobs, advantages, config)
    mismatch = torch.where(mask, old - batch.per_token["sampler_logprobs"], 0.0).detach()
    if config.sampler_correction != "none":
        objective = objective * correction(mismatch, batch, config)
    per_token = -objective
    count = mask.sum()
    metrics: dict[str, tuple[Tensor, Tensor | float]] = {
        "clip_ratio/low_mean": ((cut & (advantages < 0) & mask).sum(), count),
        "clip_ratio/high_mean": ((cut & (advantages > 0) & mask).sum(), count),
        **sampler_metrics(mismatch, mask),
    }
    if config.beta > 0:
        reference = batch.per_token["ref_logprobs"]
        kl = ESTIMATORS[config.kl_estimator](logprobs, reference)
        if config.kl_in == "loss":
            per_token = per_token + config.beta * kl
        metrics["kl"] = (masked_sum(kl.detach(), mask), count)
    terms = reduce(per_token, batch, config.reduction)
    if out.entropy is not None:
        metrics["entropy"] = (masked_sum(out.entropy.detach(), mask), count)
        if config.entropy_coef > 0:
            bonus = config.entropy_coef * masked_sum(out.entropy, mask)
            terms["token"] = terms.get("token", 0.0) - bonus
    return Loss(terms, metrics)


def at_level(log_ratio: Tensor, batch: Batch, level: str) -> Tensor:
    """Return each token's own log-ratio, or its completion's mean or sum of them, [T]."""
    if level == "token":
        return log_ratio
    total = batch.sum_per_seq(torch.where(batch.loss_mask, log_ratio, 0.0))
    if level == "sequence":
        total = total / batch.tokens_per_seq()
    return batch.expand(total)


def correction(mismatch: Tensor, batch: Batch, config: PolicyGradientConfig) -> Tensor:
    """Return truncated importance weights pi_old / pi_sampler (Yao et al. 2025), [T]."""
    weight = torch.exp(at_level(mismatch, batch, config.sampler_correction))
    low, high = config.sampler_correction_min, config.sampler_correction_max
    if config.sampler_correction_mode == "truncate":
        return weight.clamp(low, high)
    return torch.where((weight < low) | (weight > high), 0.0, weight)


def sampler_metrics(mismatch: Tensor, mask: Tensor) -> dict[str, tuple[Tensor, Tensor | float]]:
    """Return metrics of log pi_old - log pi_sampler [T], under TRL's names."""
    count, ratio = mask.sum(), torch.exp(mismatch)[mask]
    if len(ratio) == 0:
        return {}
    return {
        "sampling/sampling_logp_difference/mean": (masked_sum(mismatch.abs(), mask), count),
        "sampling/sampling_logp_difference/max": (mismatch.abs().max(), 1.0),
        "sampling/importance_sampling_ratio/mean": (ratio.sum(), count),
        "sampling/importance_sampling_ratio/min": (ratio.min(), 1.0),
        "sampling/importance_sampling_ratio/max": (ratio.max(), 1.0),
    }


def reduce(per_token: Tensor, batch: Batch, reduction: str) -> dict[Unit, Tensor]:
    """Return the sums, by unit, that make up the loss once divided by the global counts."""
    if reduction == "token":
        return {"token": masked_sum(per_token, batch.loss_mask)}
    per_sequence = batch.sum_per_seq(per_token)
    if reduction == "sequence":
        per_sequence = per_sequence / batch.tokens_per_seq()
    elif reduction == "constant":
        per_sequence = per_sequence / batch.per_seq["max_new_tokens"]
    return {"sequence": per_sequence.sum()}


def prepare(batch: Batch, models: Models, config: PolicyGradientConfig) -> Batch:
    """Add old and reference log-probs, and the advantage of every token."""
    in_reward = config.beta > 0 and config.kl_in != "loss"
    if config.num_updates > 1 or (in_reward and config.kl_logprobs == "policy"):
        batch.per_token["old_logprobs"] = models.logprobs(batch, config.token_budget)
    if config.beta > 0:
        with models.reference():
            reference = models.logprobs(batch, config.token_budget)
        batch.per_token["ref_logprobs"] = reference
    rewards = batch.per_seq["rewards"]
    rewards = rewards - config.missing_eos_penalty * batch.per_seq["truncated"]
    penalty = kl_penalty(batch, config) if in_reward else None
    if penalty is not None and config.kl_in == "reward":
        rewards = rewards - batch.sum_per_seq(penalty)
    choices = config.baseline, config.scale_rewards, config.scale_ddof, config.scale_eps
    advantages = batch.expand(advantages_of(rewards, batch.per_seq["group"], *choices))
    if penalty is not None and config.kl_in == "token_reward":
        # a completion without a score is not trained on: its penalty does not count either
        scored = batch.expand(~rewards.isnan())
        advantages = torch.where(scored, advantages - to_go(penalty, batch), 0.0)
    if config.whiten_advantages:
        scored = batch.expand(~rewards.isnan())
        advantages = whiten(advantages, batch.loss_mask & scored)
    batch.per_token["advantages"] = torch.where(batch.loss_mask, advantages, 0.0)
    if config.mask_truncated_completions:
        batch = batch.select((batch.per_seq["truncated"] == 0).nonzero()[:, 0].tolist())
    if (config.beta == 0 or in_reward) and config.entropy_coef == 0:
        # a completion of advantage 0 then has gradient exactly 0: it is counted but not run
        nonzero = (batch.per_token["advantages"] != 0).float()
        batch.per_seq["active"] = batch.sum_per_seq(nonzero) > 0
    return batch


def kl_penalty(batch: Batch, config: PolicyGradientConfig) -> Tensor:
    """Return beta times each token's KL estimate at sampling, [T].

    For tokens drawn by the sampler, k1 with the sampler's log-probs is unbiased for its KL."""
    name = "sampler_logprobs" if config.kl_logprobs == "sampler" else "old_logprobs"
    kl = ESTIMATORS[config.kl_estimator](batch.per_token[name], batch.per_token["ref_logprobs"])
    return config.beta * torch.where(batch.loss_mask, kl, 0.0)


def adapt_beta(metrics: dict[str, float], config: PolicyGradientConfig) -> dict[str, float]:
    """Return beta (1 + gain e), e being the relative error of the KL, clipped to +- 0.2.

    Ziegler et al. 2019, arXiv 1909.08593, sec. 2.2, with the KL per token."""
    if config.kl_target is None or "kl" not in metrics:
        return {}
    error = min(max(metrics["kl"] / config.kl_target - 1, -0.2), 0.2)
    return {"beta": config.beta * (1 + config.kl_gain * error)}


def check_sampler(metrics: dict[str, float], config: PolicyGradientConfig) -> None:
    """Raise ValueError if sampler and trainer disagree by more than max_logprob_difference."""
    if metrics.get("sampling/staleness"):
        return  # completions of older weights are expected to differ
    mismatch = metrics.get("sampling/sampling_logp_difference/mean", 0.0)
    if mismatch > (limit := config.max_logprob_difference or MAX_LOGPROB_DIFFERENCE["float32"]):
        raise ValueError(
            f"sampler and trainer disagree by {mismatch:.3g} nats per token on the log-probs of "
            f"the same completions (trainer.max_logprob_difference={limit})"
            ": the sampler runs other weights or another numeric precision than the trainer"
        )


def method(config: type[PolicyGradientConfig]) -> Algorithm:
    """Return the algorithm of a method with these defaults."""
    return Algorithm(
        config,
        policy_gradient,
        rows="prompt",
        prepare=prepare,
        needs_entropy=True,
        after_step=check_sampler,
        adapt=adapt_beta,
    )


grpo, rloo, reinforce = method(GRPOConfig), method(RLOOConfig), method(ReinforceConfig)
