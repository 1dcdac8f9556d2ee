"""Estimators of KL(pi || pi_ref) from samples of pi (Schulman 2020, "Approximating KL divergence").

With d = log pi - log pi_ref at a sampled token: k1 = d (unbiased, may be negative), k2 = d^2 / 2
(biased, but with the KL's gradient), k3 = exp(-d) - 1 + d (unbiased, never negative).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from posttrain.common.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


Estimator = Literal["k1", "k2", "k3"]


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return d, [T]."""
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return d^2 / 2, [T]."""
    return (logprobs - ref_logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return exp(-d) - 1 + d, [T]."""
    minus_d = ref_logprobs - logprobs
    return torch.exp(minus_d) - 1 - minus_d


ESTIMATORS: dict[Estimator, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
