"""Advantages from rewards: pure functions on CPU tensors.

A reward of nan means "not applicable": it takes no part in any mean and gets advantage 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def group_advantages(
    rewards: Tensor,  # [N]
    group: Tensor,  # [N] int64, equal for the completions of one prompt
    scale: Literal["group", "none"],
    eps: float = 1e-4,
) -> Tensor:
    """GRPO (Shao et al. 2024, arXiv 2402.03300, sec. 4.1.2): (R - mean_G) / (std_G + eps), [N].

    std is the unbiased one (ddof 1), as in TRL and verl. `scale="none"` leaves the division out
    (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783). A group of one gets advantage 0.
    """
    _, index = group.unique(return_inverse=True)
    valid = ~rewards.isnan()

    def sum_of_group(x: Tensor) -> Tensor:
        sums = x.new_zeros(len(x)).index_add(0, index, torch.where(valid, x, 0.0))
        return sums[index]

    count = sum_of_group(torch.ones_like(rewards))
    centred = rewards - sum_of_group(rewards) / count
    if scale == "group":
        variance = sum_of_group(centred.square()) / (count - 1).clamp(min=1)
        centred = centred / (variance.sqrt() + eps)
    return torch.where(valid, centred, 0.0)
