"""The next token: uniform noise from each row's own seed, and the token that it picks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.rollout.sampler import SamplingParams


@dataclass
class Drawn:
    """The newest token of each row."""

    tokens: Tensor  # [B]
    logprobs: Tensor  # [B]
    top: tuple[Tensor, Tensor] | None = None  # log-probs and tokens [B, K] of the K likeliest


Groups = list[tuple[SamplingParams, Tensor | None]]
"""Rows by their distribution: its parameters, and the rows' indices, None for all."""


def groups_of(params: Sequence[SamplingParams], device: torch.device) -> Groups:
    """Return the rows that have the same temperature, top_p, top_k and min_p together."""
    rows: dict[tuple[float, ...], list[int]] = {}
    for i, p in enumerate(params):
        rows.setdefault((p.temperature, p.top_p, p.top_k, p.min_p), []).append(i)
    if len(rows) == 1:
        return [(params[0], None)]
    return [(params[at[0]], torch.tensor(at, device=device)) for at in rows.values()]


def noise_of(
    seeds: Sequence[int], params: Sequence[SamplingParams], device: torch.device
) -> Tensor:
    """Return uniform numbers in [0, 1), [B, largest max_new_tokens], each row from its own seed.

    Explicitly fp32, since torch's default dtype may differ while a reward in the main thread loads
    its model."""
    noise = torch.zeros(
        len(seeds), max(1, *(p.max_new_tokens for p in params)), dtype=torch.float32
    )
    for row, seed, p in zip(noise, seeds, params):
        if p.temperature:
            n, generator = p.max_new_tokens, torch.Generator().manual_seed(seed)
            torch.rand(n, generator=generator, dtype=torch.float32, out=row[:n])
    return noise.to(device)


def draw(logits: Tensor, groups: Groups, noise: Tensor, top: int = 0) -> Drawn:
    """Return the tokens that noise [B] picks from logits [B, vocab], and the `top` likeliest."""
    if len(groups) == 1:
        return sample(logits, groups[0][0], noise, top)
    parts = [sample(logits[rows], params, noise[rows], top) for params, rows in groups]
    back = torch.cat([rows for _, rows in groups if rows is not None]).argsort()
    tokens = torch.cat([part.tokens for part in parts])[back]
    drawn = Drawn(tokens, torch.cat([part.logprobs for part in parts])[back])
    if top:
        values, best = (torch.cat(x)[back] for x in zip(*(part.top for part in parts if part.top)))
        drawn.top = values, best
    return drawn


def sample(logits: Tensor, params: SamplingParams, noise: Tensor, top: int = 0) -> Drawn:
    """Return tokens and log-probs from logits [B, vocab], by inverting the CDF at noise [B]."""
    if params.temperature == 0:
        token, logprobs = logits.argmax(-1)[:, None], logits.log_softmax(-1)
    else:
        logprobs = (logits / params.temperature).log_softmax(-1)
        if params.top_k or params.top_p < 1 or params.min_p:
            logprobs = _truncate(logprobs, params).log_softmax(-1)
        cdf = _cumulative(logprobs.exp())
        # scaled by the sum, which rounding leaves near 1: no tail token is picked by mistake
        point = noise[:, None] * cdf[:, -1:]
        token = torch.searchsorted(cdf, point, right=True).clamp_(max=logits.shape[1] - 1)
    drawn = Drawn(token[:, 0], logprobs.gather(1, token)[:, 0])
    if top:
        values, tokens = logprobs.topk(top)
        drawn.top = values, tokens
    return drawn


def _truncate(logprobs: Tensor, params: SamplingParams) -> Tensor:
    """Keep the top_k likeliest tokens, then the fewest of them that hold top_p of the mass.

    Of these, min_p keeps those with at least that share of the likeliest token's probability."""
    ordered, index = logprobs.sort(dim=-1, descending=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if params.top_k:
        keep[:, params.top_k :] = False
    if params.top_p < 1:
        mass = torch.where(keep, ordered.exp(), 0.0)
        before = _cumulative(mass) - mass
        keep &= before < params.top_p * mass.sum(-1, keepdim=True)
        keep[:, 0] = True  # also with top_p = 0
    if params.min_p:
        keep &= ordered.exp() >= params.min_p * ordered[:, :1].exp()
    ordered = torch.where(keep, ordered, -torch.inf)
    return torch.empty_like(logprobs).scatter_(1, index, ordered)


def _cumulative(mass: Tensor) -> Tensor:
    """Return the running sum of probabilities [B, vocab].

    A GPU adds floating-point numbers in an order that changes from run to run, and integers, here
    multiples of 2^-40, exactly."""
    if not (mass.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return mass.cumsum(-1)
    return (mass.double() * 2.0**40).round().long().cumsum(-1).mul(2.0**-40).to(mass.dtype)
