"""Linear layers whose frozen weight is stored in 4 or 8 bits, and their product.

The product is that of the de-quantised weight in the compute dtype, with and without gradients.
bitsandbytes' own layers compute otherwise without gradients: on some CPUs in bf16, on a weight that
they repack in place and do not restore exactly, and for int8 with quantised inputs, whose outliers
depend on the other rows of the batch. So its storage is used here, and its products are not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.common import distributed
from posttrain.model.device import free_memory
from posttrain.model.kernels.linear import product

SHARE = 0.5
"""Share of the free memory that de-quantised weights may take while completions are sampled."""


def is_quantised(module: Any) -> bool:
    """Whether a module is a layer with a quantised weight."""
    weight = getattr(module, "_parameters", {}).get("weight")
    return type(weight).__name__ in ("Params4bit", "Int8Params")


def quantised_layers(network: nn.Module) -> list[Any]:
    """Return the layers of a network with a quantised weight."""
    return [module for module in network.modules() if is_quantised(module)]


def quantised(network: nn.Module) -> bool:
    """Whether a network has a layer with a quantised weight."""
    return any(map(is_quantised, network.modules()))


def dequantise(weight: Any, dtype: torch.dtype) -> Tensor:
    """Return a quantised weight [outputs, inputs] in the dtype."""
    if type(weight).__name__ == "Int8Params":
        return weight.data.to(dtype).mul_(weight.SCB[:, None] / 127)  # type: ignore[no-any-return]
    import bitsandbytes.functional as bnb

    state = weight.quant_state
    scales = state.absmax
    if state.nested:
        scales = bnb.dequantize_blockwise(scales, state.state2) + state.offset
    result: Tensor = torch.ops.bitsandbytes.dequantize_4bit(
        weight.data, scales, state.blocksize, state.quant_type, state.shape, dtype
    )
    return result


class _Product(torch.autograd.Function):
    """x weight^T (+ bias), with the weight de-quantised in both passes and never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: Any) -> Tensor:
        ctx.weight = weight
        return product(x, dequantise(weight, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        to_x, to_bias = ctx.needs_input_grad[:2]
        return (
            product(grad, dequantise(ctx.weight, grad.dtype).T) if to_x else None,
            grad.sum(0) if to_bias else None,
            None,
        )


def forward(self: Any, input: Tensor) -> Tensor:
    """Return input weight^T (+ bias) in the compute dtype."""
    dtype, device = input.dtype, input.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    rows = input.reshape(-1, input.shape[-1]).to(dtype)
    bias = None if self.bias is None else self.bias.to(dtype)
    if self.dense is not None and self.dense.dtype == dtype and not torch.is_grad_enabled():
        out = product(rows, self.dense, bias)
    else:
        out = _Product.apply(rows, bias, self.weight)  # type: ignore[no-untyped-call]
    return out.view(*input.shape[:-1], out.shape[-1])


@functools.cache
def layer_classes() -> tuple[type, type]:
    """Return bitsandbytes' layers of 4 and 8 bits with the product of this module."""
    import bitsandbytes

    bnb: Any = bitsandbytes
    forms: Any = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
    four, eight = (type(form.__name__, (form,), {"forward": forward}) for form in forms)
    return four, eight


@contextmanager
def dense(network: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Keep de-quantised weights in memory inside a with block without gradients, if they fit.

    The numbers are the same. One row then takes as long as with weights that are not quantised;
    without it every token de-quantises every layer."""
    layers = quantised_layers(network)
    if not layers or layers[0].dense is not None or not fits_dense(network, dtype):
        yield
        return
    try:
        for layer in layers:
            layer.dense = dequantise(layer.weight, dtype)
        yield
    finally:
        for layer in layers:
            layer.dense = None


def dense_bytes(network: nn.Module, dtype: torch.dtype) -> int:
    """Return the bytes of a network's quantised weights once they are de-quantised."""
    return sum(num_weights(m.weight) for m in quantised_layers(network)) * dtype.itemsize


def fits_dense(network: nn.Module, dtype: torch.dtype) -> bool:
    """Return whether the de-quantised weights fit into SHARE of the memory that is free."""
    device = next(network.parameters()).device
    sharing = 1 if device.type == "cuda" else distributed.num_ranks()
    # twice, since a decoding step copies them into the layout of its kernel
    return 2 * dense_bytes(network, dtype) <= SHARE * free_memory(device) / sharing


def stored_as(network: nn.Module) -> dict[str, Any] | None:
    """Return the type and double_quant of a network's quantised weights; None without any."""
    layers = quantised_layers(network)
    if not layers:
        return None
    state = getattr(layers[0].weight, "quant_state", None)
    if state is None:
        return {"type": "int8"}
    return {"type": state.quant_type, "double_quant": state.nested}


def num_weights(parameter: Any) -> int:
    """Return the number of weights that a parameter stands for."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def num_parameters(network: nn.Module) -> int:
    """Return the number of parameters of a network, quantised or not."""
    return sum(map(num_weights, network.parameters()))


def stored_bytes(network: nn.Module) -> int:
    """Return the bytes of a network's parameters, with the scales of quantised ones."""
    return sum(p.numel() * p.element_size() + scale_bytes(p) for p in network.parameters())


def scale_bytes(parameter: Any) -> int:
    """Return the bytes of the scales of a quantised parameter; 0 for any other."""
    state = getattr(parameter, "quant_state", None)
    scales = [getattr(parameter, "SCB", None), getattr(state, "absmax", None)]
    scales.append(getattr(getattr(state, "state2", None), "absmax", None))
    return sum(x.numel() * x.element_size() for x in scales if x is not None)
