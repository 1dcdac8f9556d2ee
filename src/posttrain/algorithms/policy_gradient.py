"""Policy gradient on sampled completions: `grpo`. The variants are choices, not losses.

r_t  = exp(log pi(y_t) - log pi_old(y_t))
l_t  = - min(r_t A, clip(r_t, 1 - epsilon, 1 + epsilon_high) A) + beta k3_t
k3_t = exp(log pi_ref - log pi) - 1 - (log pi_ref - log pi)

PPO's clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, eq. 7) with the group-relative
advantage and the k3 penalty of GRPO (Shao et al. 2024, arXiv 2402.03300, eq. 3 and 4).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from posttrain.algorithms.advantages import group_advantages
from posttrain.algorithms.base import Algorithm, Loss, TrainerConfig, masked_sum
from posttrain.batch import Batch
from posttrain.forward import Output
from posttrain.models import Models


class GRPOConfig(TrainerConfig):
    type: Literal["grpo"] = "grpo"
    learning_rate: float = Field(1e-6, ge=0)
    beta: float = Field(0.0, ge=0)
    """Coefficient of the KL penalty to the reference; 0 leaves the reference out."""
    epsilon: float = Field(0.2, gt=0, lt=1)
    """Lower clip of the probability ratio: 1 - epsilon."""
    epsilon_high: float | None = Field(None, gt=0)
    """Upper clip: 1 + epsilon_high; by default epsilon (DAPO's clip-higher: 0.28)."""
    scale_rewards: Literal["group", "none"] = "group"
    """Divide the advantage by the standard deviation of its group, or not (Dr. GRPO)."""
    reduction: Literal["token", "sequence", "constant"] = "token"
    """token: over all tokens of the step (DAPO); sequence: mean per completion, then over
    completions (the GRPO paper); constant: sum per completion over max_new_tokens (Dr. GRPO)."""
    num_inner_epochs: int = Field(1, ge=1)
    """Passes over each batch of rollouts (mu in the paper)."""
    num_minibatches: int = Field(1, ge=1)
    """Optimiser steps that share one batch of rollouts, which has num_minibatches x batch_size
    prompts."""
    max_logprob_difference: float = Field(0.05, gt=0)
    """Stop when sampler and trainer disagree by more than this, in nats, on average."""


def clipped_policy_gradient(out: Output, batch: Batch, config: GRPOConfig) -> Loss:
    mask = batch.loss_mask
    logprobs = out.logprobs
    # with one update per batch of rollouts the ratio is 1 by construction, its gradient is not 0
    old = batch.per_token.get("old_logprobs", logprobs.detach())
    ratio = torch.exp(logprobs - old)
    advantages = batch.expand(batch.per_seq["advantages"])
    low, high = 1 - config.epsilon, 1 + (config.epsilon_high or config.epsilon)
    per_token = -torch.min(ratio * advantages, ratio.clamp(low, high) * advantages)
    count = mask.sum()
    metrics: dict[str, tuple[Tensor, Tensor | float]] = {
        "clip_ratio/low_mean": (((ratio < low) & (advantages < 0) & mask).sum(), count),
        "clip_ratio/high_mean": (((ratio > high) & (advantages > 0) & mask).sum(), count),
    }
    if config.beta > 0:
        difference = batch.per_token["ref_logprobs"] - logprobs
        k3 = torch.exp(difference) - 1 - difference
        per_token = per_token + config.beta * k3
        metrics["kl"] = (masked_sum(k3.detach(), mask), count)
    if out.entropy is not None:
        metrics["entropy"] = (masked_sum(out.entropy.detach(), mask), count)
    mismatch = masked_sum((old - batch.per_token["sampler_logprobs"]).abs().detach(), mask)
    metrics["sampling/sampling_logp_difference/mean"] = (mismatch, count)
    return Loss(reduce(per_token, batch, config.reduction), metrics)


def reduce(per_token: Tensor, batch: Batch, reduction: str) -> dict:
    """The sums, by unit, whose quotients by the global counts make up the loss."""
    if reduction == "token":
        return {"token": masked_sum(per_token, batch.loss_mask)}
    per_sequence = batch.sum_per_seq(per_token)
    if reduction == "sequence":
        return {"sequence": (per_sequence / batch.tokens_per_seq()).sum()}
    return {"sequence": (per_sequence / batch.per_seq["max_new_tokens"]).sum()}


def add_advantages(batch: Batch, models: Models, config: GRPOConfig) -> Batch:
    rewards, group = batch.per_seq["rewards"], batch.per_seq["group"]
    batch.per_seq["advantages"] = group_advantages(rewards, group, config.scale_rewards)
    if config.beta == 0:
        # without a KL term a completion of advantage 0 has gradient exactly 0: count it, skip it
        batch.per_seq["active"] = batch.per_seq["advantages"] != 0
    if config.num_inner_epochs * config.num_minibatches > 1:
        batch.per_token["old_logprobs"] = models.logprobs(batch, config.micro_batch_tokens)
    if config.beta > 0:
        with models.reference():
            reference = models.logprobs(batch, config.micro_batch_tokens)
        batch.per_token["ref_logprobs"] = reference
    return batch


def check_sampler(metrics: dict[str, float], config: GRPOConfig) -> None:
    mismatch = metrics.get("sampling/sampling_logp_difference/mean", 0.0)
    if mismatch > config.max_logprob_difference:
        raise ValueError(
            f"sampler and trainer disagree by {mismatch:.3g} nats per token on the log-probs of "
            f"the same completions (trainer.max_logprob_difference={config.max_logprob_difference})"
            ": the sampler runs other weights or another numeric precision than the trainer"
        )


grpo = Algorithm(
    GRPOConfig,
    clipped_policy_gradient,
    rows="prompt",
    online=True,
    prepare=add_advantages,
    needs_reference=lambda config: config.beta > 0,
    needs_entropy=True,
    updates=lambda config: (config.num_inner_epochs, config.num_minibatches),
    guard=check_sampler,
)
