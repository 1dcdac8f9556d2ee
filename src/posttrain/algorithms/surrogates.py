"""Surrogates for the probability ratio times the advantage: one function per choice.

Each takes the ratio r [T], log pi [T], the advantage A [T] and the config, and returns the
objective to be maximised, [T], and the tokens that a bound acted on, [T] bool. With a ratio of the
sequence level, every token of a completion has the same r.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from posttrain.common.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


Surrogate = Literal["clip", "cispo", "sapo", "vespo"]

SAPO_TEMPERATURES = 1.0, 1.05  # for positive and negative advantages, the paper's
VESPO_POSITIVE, VESPO_NEGATIVE = (2.0, 3.0), (3.0, 2.0)  # (k, lambda), TRL's


def clip(r: Tensor, logprobs: Tensor, a: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """Return PPO's clipped objective.

    min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A) (Schulman et al. 2017, arXiv 1707.06347, eq.
    7); clip-higher is DAPO's (arXiv 2503.14476). With `dual_clip` c, it is at least c A if A < 0
    (Ye et al. 2020, arXiv 1912.09729, eq. 5)."""
    low, high = 1 - config.epsilon, 1 + upper(config)
    objective = torch.min(r * a, r.clamp(low, high) * a)
    cut = ((r < low) & (a < 0)) | ((r > high) & (a > 0))
    if config.dual_clip is not None:
        floor = config.dual_clip * a
        cut = cut | ((a < 0) & (objective < floor))
        objective = torch.where(a < 0, torch.max(objective, floor), objective)
    return objective, cut


def cispo(r: Tensor, logprobs: Tensor, a: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """Return sg(clip(r, 1 - epsilon, 1 + epsilon_high)) A log pi: every token keeps a gradient.

    It is weighted by a bounded ratio (MiniMax-M1, 2025, arXiv 2506.13585, eqs. 4 and 5)."""
    low, high = 1 - config.epsilon, 1 + upper(config)
    weight = r.clamp(low, high).detach()
    return weight * a * logprobs, (r > high) & (a > 0)


def sapo(r: Tensor, logprobs: Tensor, a: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """Return sigmoid(tau (r - 1)) 4 / tau A: a soft gate (Gao et al. 2025, arXiv 2511.20347)."""
    positive, negative = SAPO_TEMPERATURES
    tau = torch.where(a > 0, positive, negative)
    return torch.sigmoid(tau * (r - 1)) * 4 / tau * a, torch.zeros_like(a, dtype=torch.bool)


def vespo(w: Tensor, logprobs: Tensor, a: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """Return sg(phi(w)) A log pi with phi(w) = w^k exp(lambda (1 - w)): VESPO, as in TRL 1.16.

    w is the ratio of the sequence (ratio_level: sequence_sum); k and lambda depend on A's sign."""
    (k_pos, lambda_pos), (k_neg, lambda_neg) = VESPO_POSITIVE, VESPO_NEGATIVE
    k, decay = torch.where(a >= 0, k_pos, k_neg), torch.where(a >= 0, lambda_pos, lambda_neg)
    w = w.detach().clamp(min=1e-8)
    weight = torch.exp(decay + k * w.log() - decay * w)
    return weight * a * logprobs, torch.zeros_like(a, dtype=torch.bool)


def upper(config: Any) -> float:
    """Return epsilon_high or, if it is not set, epsilon."""
    bound: float = config.epsilon if config.epsilon_high is None else config.epsilon_high
    return bound


SURROGATES: dict[Surrogate, Callable[..., tuple[Tensor, Tensor]]] = {
    "clip": clip,
    "cispo": cispo,
    "sapo": sapo,
    "vespo": vespo,
}
