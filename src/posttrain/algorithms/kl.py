"""Estimators of KL(pi || pi_ref) from samples of pi (Schulman 2020, "Approximating KL divergence").

With d = log pi - log pi_ref at a sampled token: k1 = d (unbiased, may be negative), k2 = d^2 / 2
(biased, its gradient is the KL's), k3 = exp(-d) - 1 + d (unbiased, never negative).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from posttrain.common.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


Estimator = Literal["k1", "k2", "k3"]


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return logprobs - ref_logprobs


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    return (logprobs - ref_logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    difference = ref_logprobs - logprobs
    return torch.exp(difference) - 1 - difference


ESTIMATORS: dict[Estimator, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
