"""Matrix products in fp32 on a CPU, by oneDNN.

torch leaves them to MKL, which holds back on processors that are not Intel's: on an AMD EPYC 215
GFLOP/s where oneDNN, which torch ships as well, does 490. torch offers oneDNN for fp32 to its
compiler only; so the same operator is called here. Everything else goes torch's way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_SIZE = 2**20  # multiplications below which a call costs more than it saves


@functools.cache
def available() -> bool:
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
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [M, K] and weight [N, K] to x weight^T (+ bias) [M, N]. Without gradient."""
    return _onednn(x, weight, bias) if _suits(x, weight) else F.linear(x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear, with its gradients."""
    if not _suits(x, weight):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    found: Tensor = _Linear.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
    return found.view(*x.shape[:-1], len(weight))


def reusable(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """product(x, weight, bias) for many x: the weight is laid out for oneDNN once, as a copy, which
    takes half the time with few rows. Stale as soon as the weight changes."""
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
    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def use_onednn(model: nn.Module) -> None:
    """Let the linear layers of a model take their products from here."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
