"""Fused RMSNorm and SwiGLU: fewer passes over memory, fewer tensors kept for the backward pass.

transformers' modules consist of elementary operations, each of which writes a tensor and keeps one.
On a CPU, these take as long in a small model as its matrix products.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import silu


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return weight * x / sqrt(mean(x^2) + eps) over the last dimension.

    Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4.
    """
    if not torch.is_grad_enabled():  # the call of an autograd function takes as long as the norm
        scale = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        return (x * scale).mul_(weight)
    out: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with its gradients.

    With s = 1 / sqrt(mean(x^2) + eps), D the width and g the gradient of the output:
    dx = s (g w - x s^2 / D sum(g w x)) and dw = sum over the rows of g x s.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        # in transformers' order, so that a saved model has bitwise the same logits there
        scale = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        (grad,) = grads
        product = (grad * x).mul_(scale)
        along = (product @ weight)[..., None].mul_(scale).div_(x.shape[-1])
        to_weight = product.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return (grad * weight).addcmul_(x, along, value=-1).mul_(scale), to_weight, None


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up (Shazeer 2020, arXiv 2002.05202, eq. 6)."""
    if not torch.is_grad_enabled():
        return silu(gate).mul_(up)
    out: Tensor = _SwiGLU.apply(gate, up)  # type: ignore[no-untyped-call]
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        gate, up = ctx.saved_tensors
        (grad,) = grads
        to_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return to_gate, silu(gate).mul_(grad)


def _suits(x: Tensor, weight: Tensor) -> bool:
    return x.dtype == weight.dtype == torch.float32 and type(weight) in (Tensor, nn.Parameter)


@functools.cache
def _llama_norm() -> Any:
    """Return the forward pass of transformers' norm, for dtypes other than fp32."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    return LlamaRMSNorm.forward


class RMSNorm(nn.Module):
    """Replacement for LlamaRMSNorm, with the same attributes."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Any:
        """Return the normalised states: by torch's kernel on a GPU, ours in fp32, else theirs."""
        if hidden_states.is_cuda:
            x, weight = hidden_states, self.weight.to(hidden_states.dtype)
            with torch.autocast("cuda", enabled=False):  # which would compute in fp32
                return F.rms_norm(x, x.shape[-1:], weight, self.variance_epsilon)
        if not _suits(hidden_states, self.weight):
            return _llama_norm()(self, hidden_states)
        return rms_norm(hidden_states, self.weight, self.variance_epsilon)


class MLP(nn.Module):
    """Replacement for LlamaMLP, with the same attributes."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, x: Tensor) -> Any:
        """Return down(swiglu(gate(x), up(x)))."""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


def use_fused(model: nn.Module) -> None:
    """Replace the norms and feed-forward layers of a model whose code is the same as Llama's."""
    from transformers.activations import SiLUActivation  # imported here for start-up time
    from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

    for module in model.modules():
        if _same(module, LlamaRMSNorm):
            module.__class__ = RMSNorm
        elif _same(module, LlamaMLP) and isinstance(module.act_fn, (nn.SiLU, SiLUActivation)):
            module.__class__ = MLP


def _same(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module's forward pass has the bytecode of `kind`, under whatever class name."""
    code, expected = type(module).forward.__code__, kind.forward.__code__
    return (code.co_code, code.co_names) == (expected.co_code, expected.co_names)
