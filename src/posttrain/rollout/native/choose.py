"""The next token: uniform noise from each row's own seed, and the token that it picks."""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.rollout.sampler import SamplingParams


def noise_of(seeds: list[int], params: SamplingParams, device: torch.device) -> Tensor:
    """Return uniform numbers in [0, 1), [B, max_new_tokens], each row from its own seed.

    Explicitly fp32, since torch's default dtype may differ while a reward in the main thread loads
    its model."""
    n = params.max_new_tokens
    if params.temperature == 0:
        return torch.zeros(len(seeds), n, dtype=torch.float32, device=device)
    rows = [
        torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        for seed in seeds
    ]
    return torch.stack(rows).to(device)


def sample(logits: Tensor, params: SamplingParams, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return tokens [B] and log-probs [B] from logits [B, vocab], by inverting the CDF at noise."""
    if params.temperature == 0:
        best = logits.argmax(-1)
        return best, logits.log_softmax(-1).gather(1, best[:, None])[:, 0]
    logprobs = (logits / params.temperature).log_softmax(-1)
    if params.top_k or params.top_p < 1:
        logprobs = _truncate(logprobs, params).log_softmax(-1)
    cdf = _cumulative(logprobs.exp())
    # scaled by the sum, which rounding leaves near 1, so that no tail token is picked by mistake
    point = noise[:, None] * cdf[:, -1:]
    token = torch.searchsorted(cdf, point, right=True).clamp_(max=logits.shape[1] - 1)
    return token[:, 0], logprobs.gather(1, token)[:, 0]


def _truncate(logprobs: Tensor, params: SamplingParams) -> Tensor:
    """Keep the top_k likeliest tokens, then the fewest of them that hold top_p of the mass."""
    ordered, index = logprobs.sort(dim=-1, descending=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if params.top_k:
        keep[:, params.top_k :] = False
    if params.top_p < 1:
        mass = torch.where(keep, ordered.exp(), 0.0)
        before = _cumulative(mass) - mass
        keep &= before < params.top_p * mass.sum(-1, keepdim=True)
        keep[:, 0] = True  # also with top_p = 0
    ordered = torch.where(keep, ordered, -torch.inf)
    return torch.empty_like(logprobs).scatter_(1, index, ordered)


def _cumulative(mass: Tensor) -> Tensor:
    """Return the running sum of probabilities [B, vocab].

    A GPU adds floating-point numbers in an order that changes from run to run, and integers, here
    multiples of 2^-40, exactly."""
    if not (mass.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return mass.cumsum(-1)
    return (mass.double() * 2.0**40).round().long().cumsum(-1).mul(2.0**-40).to(mass.dtype)
