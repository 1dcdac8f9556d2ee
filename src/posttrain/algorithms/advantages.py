"""Advantages from rewards.

A reward of nan means "not applicable": it takes no part in any mean and gets advantage 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from posttrain.common import mesh
from posttrain.common.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.common.batch import Batch

Baseline = Literal["group_mean", "leave_one_out", "none"]
Scale = Literal["group", "leave_one_out", "batch", "none"]


def advantages_of(
    rewards: Tensor,  # [N]
    group: Tensor,  # [N] int64, equal for the completions of one prompt
    baseline: Baseline,
    scale: Scale,
    ddof: int,
    eps: float,
) -> Tensor:
    """Return (R - baseline) / (std + eps), [N]. A collective if the scale is `batch`.

    Baseline: the mean of the group (GRPO, Shao et al. 2024, arXiv 2402.03300, sec. 4.1.2), the
    mean of its other members (RLOO, Ahmadian et al. 2024, arXiv 2402.14740, eq. 7), or 0. A group
    with one scored member has no baseline: its advantage is 0.
    Scale: the standard deviation of the rewards of the group, of its other members (NeMo RL; with
    ddof 1, and no division if it is 0), or of all completions of the step, over every rank.
    """
    _, index = group.unique(return_inverse=True)
    valid = ~rewards.isnan()

    def sum_of_group(x: Tensor) -> Tensor:
        sums = x.new_zeros(len(x)).index_add(0, index, torch.where(valid, x, 0.0))
        return sums[index]

    count = sum_of_group(torch.ones_like(rewards))
    centred = rewards - sum_of_group(rewards) / count
    squares = sum_of_group(centred.square())
    if baseline == "group_mean":
        advantages = centred
    elif baseline == "leave_one_out":
        advantages = centred * count / (count - 1)
    else:
        advantages = rewards
    if scale == "group":
        variance = squares / (count - ddof).clamp(min=1)
        advantages = advantages / (variance.sqrt() + eps)
    elif scale == "leave_one_out":
        # the others' squared deviations, from their own mean: -centred / (count - 1)
        others = squares - centred.square() * count / (count - 1)
        # rounding leaves a rest of this difference if the others' rewards are equal
        others = torch.where(others > 1e-6 * squares, others, 0.0)
        std = (others / (count - 2)).sqrt()
        advantages = torch.where((count > 2) & (std > 0), advantages / (std + eps), advantages)
    elif scale == "batch":
        everyone = torch.cat(mesh.gather_shares(rewards[valid].cpu()))
        std = everyone.std(correction=ddof) if len(everyone) > ddof else everyone.new_zeros(())
        advantages = advantages / (std.to(rewards.device) + eps)
    applicable = valid if baseline == "none" else valid & (count > 1)
    return torch.where(applicable, advantages, 0.0)


def to_go(per_token: Tensor, batch: Batch) -> Tensor:
    """Return the sum of x over the trained tokens from each token to its sequence's end, [T]."""
    x = torch.where(batch.loss_mask, per_token, 0.0).double()
    through = x.cumsum(0)
    last = batch.last_tokens()
    return (batch.expand(through[last]) - through + x).to(per_token.dtype)


def whiten(per_token: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) over the masked tokens of every rank, [T]. A collective.

    var has ddof 1, as in TRL's and verl's masked_whiten. Fewer than two tokens give 0."""
    local = per_token[mask].double()
    sums = mesh.gather_shares((len(local), float(local.sum())))
    count, total = (sum(x) for x in zip(*sums))
    mean = total / max(count, 1)
    squares = sum(mesh.gather_shares(float((local - mean).square().sum())))
    if count < 2:
        return torch.zeros_like(per_token)
    scaled = (per_token - mean) * (squares / (count - 1) + eps) ** -0.5
    return torch.where(mask, scaled, 0.0)


def gae(
    rewards: Tensor,  # [T]
    values: Tensor,  # [T] of the state before each token
    bootstrap: Tensor,  # [N] value of the state after the last token; 0 if that is terminal
    batch: Batch,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns [T], over the tokens under the loss mask alone.

    Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16), from the
    last token back: delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}. Tokens
    between two actions (a tool's answer) are skipped: the next action's value follows.
    """
    mask = batch.loss_mask
    sequence, lengths = batch.sequence_ids()[mask], batch.tokens_per_seq().long()
    width = int(lengths.max()) if len(lengths) else 0
    # index of each action among its sequence's
    before = lengths.cumsum(0) - lengths
    place = torch.arange(len(sequence), device=mask.device) - before[sequence]
    padded = rewards.new_zeros(2, len(lengths), width + 1, dtype=torch.float64)
    padded[0, sequence, place] = rewards[mask].double()
    padded[1, sequence, place] = values[mask].double()
    rows = torch.arange(len(lengths), device=mask.device)
    padded[1, rows, lengths] = bootstrap.double()
    result = padded.new_zeros(len(lengths), width + 1)
    for t in range(width - 1, -1, -1):
        delta = padded[0, :, t] + gamma * padded[1, :, t + 1] - padded[1, :, t]
        inside = t < lengths
        result[:, t] = torch.where(inside, delta + gamma * lam * result[:, t + 1], 0.0)
    advantages = torch.zeros_like(rewards)
    advantages[mask] = result[sequence, place].to(rewards.dtype)
    return advantages, torch.where(mask, advantages + values, 0.0)
