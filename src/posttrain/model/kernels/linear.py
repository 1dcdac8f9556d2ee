"""Matrix products in fp32 on a CPU, by oneDNN.

torch uses MKL for them, which is slow on processors that are not Intel's: 215 GFLOP/s on an AMD
EPYC on which oneDNN, which torch ships as well, reaches 490. torch uses oneDNN for fp32 only in its
compiler, so the same operator is called here. All other products are left to torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_SIZE = 2**20  # multiplications below which the call costs more than it saves


@functools.cache
def available() -> bool:
    """Whether this torch has oneDNN and the operators used here."""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * weight.shape[0] >= MIN_SIZE
        and not torch.is_autocast_enabled("cpu")
        and type(weight) in (Tensor, nn.Parameter)
        and available()
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x weight^T (+ bias) [M, N] from x [M, K] and weight [N, K], without gradients."""
    return _onednn(x, weight, bias) if _suits(x, weight) else F.linear(x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return F.linear(x, weight, bias), differentiable."""
    if not _suits(x, weight):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled():
        out: Tensor = _Linear.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
    else:
        out = _onednn(rows, weight, bias)
    return out.view(*x.shape[:-1], len(weight))


def reusable(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Return a function x -> product(x, weight, bias), for many x.

    The weight is copied into oneDNN's layout once, which halves the time of products with few rows.
    The function is stale as soon as the weight changes.
    """
    if not (weight.device.type == "cpu" and weight.dtype == torch.float32 and available()):
        return partial(F.linear, weight=weight, bias=bias)
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.detach())

    def apply(x: Tensor) -> Tensor:
        return _onednn(x, laid_out, bias) if _suits(x, weight) else F.linear(x, weight, bias)

    return apply


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            product(grad, weight.T) if to_x else None,
            product(grad.T, x.T) if to_weight else None,
            grad.sum(0) if to_bias else None,
        )


class Linear(nn.Linear):
    """A linear layer whose products are computed by oneDNN if they are large enough."""

    def forward(self, input: Tensor) -> Tensor:
        """Return input weight^T (+ bias)."""
        return linear(input, self.weight, self.bias)


def use_onednn(model: nn.Module) -> None:
    """Make the linear layers of a model compute their products here."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
