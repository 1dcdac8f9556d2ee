"""Linear layers of a decoding step: those that read the same states joined, adapters inside.

A step of a small network spends its time in calls, so that queries, keys and values become one
product. A LoRA adapter costs nothing where the weights are copied anyway (fp32 on a CPU, into
oneDNN's layout): it is added to the copy. Elsewhere, and for several adapters in a batch, its two
narrow products are added to the output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posttrain.model.kernels.linear import Linear, reusable
from posttrain.model.many_adapters import ManyAdapters, Stack

LORA = (
    ("peft.tuners.lora.layer", "Linear"),
    ("peft.tuners.lora.bnb", "Linear4bit"),
    ("peft.tuners.lora.bnb", "Linear8bitLt"),
)
"""PEFT's layers of a LoRA, by module and class."""
Project = Callable[[Tensor, Tensor | None], Sequence[Tensor]]
"""(states [B, in], adapter of each row [B] or None) -> an output [B, out] of each joined layer."""


@dataclass
class Weights:
    """A linear layer as numbers: x weight^T + bias + (x low^T) high^T."""

    weight: Tensor  # [out, in]
    bias: Tensor | None  # [out]
    low: Tensor | None = None  # [R, in]
    high: Tensor | None = None  # [out, R], scaled

    def merged(self) -> Tensor:
        """Return the weight [out, in] with the low-rank part added, in fp32."""
        if self.low is None or self.high is None:
            return self.weight
        return torch.addmm(self.weight.float(), self.high.float(), self.low.float())


def weights_of(module: Any) -> Weights | None:
    """Return a layer's numbers; None if it is no plain layer with or without a plain LoRA.

    DoRA, layers that are quantised and not `dense`, and all others keep their forward pass."""
    if type(module) in (nn.Linear, Linear):
        return Weights(module.weight, module.bias)
    if getattr(module, "dense", None) is not None:  # a quantised weight, while it is de-quantised
        return Weights(module.dense, module.bias)
    kind = type(module)
    if (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D"):
        return Weights(module.weight.T, module.bias)
    if (kind.__module__, kind.__name__) not in LORA:
        return None
    base = weights_of(module.get_base_layer())
    if base is None or module.merged:
        return None
    names = [name for name in module.active_adapters if name in module.lora_A]
    names = [] if module.disable_adapters else names
    if any(name in module.lora_variant or module.lora_bias[name] for name in names):
        return None
    if names:
        base.low = torch.cat([module.lora_A[name].weight for name in names])
        scaled = [module.lora_B[name].weight * module.scaling[name] for name in names]
        base.high = torch.cat(scaled, dim=1)
    return base


def joined(
    modules: Sequence[Any], compute: torch.dtype | None, adapters: ManyAdapters | None
) -> Project:
    """Return the function of layers that read the same states.

    `compute` is autocast's dtype, None without autocast. Stale as soon as a weight changes."""
    found = [weights_of(module) for module in modules]
    weights = [w for w in found if w is not None]
    if len(weights) < len(found):
        if len(found) == 1:
            return lambda x, rows: (modules[0](x),)  # with its hooks, which add the rows' adapters
        each = [joined([module], compute, adapters) for module in modules]
        return lambda x, rows: [project(x, rows)[0] for project in each]
    sizes = [len(w.weight) for w in weights]
    merges = compute is None and all(
        w.weight.dtype == torch.float32 and w.weight.device.type == "cpu" for w in weights
    )
    product = _base(weights, compute, merges)
    add = [] if merges else _own_adapter(weights, compute)
    stacks = [None if adapters is None else adapters.stack_of(module) for module in modules]
    mixed = _several(stacks, compute)

    def project(x: Tensor, rows: Tensor | None) -> Sequence[Tensor]:
        x = x if compute is None else x.to(compute)
        y = product(x)
        outputs = (y,) if len(sizes) == 1 else y.split(sizes, dim=-1)
        for place, low, high in add:
            outputs[place].addmm_(F.linear(x, low), high)
        if rows is not None:
            for place, low, high, owner in mixed:
                narrow = F.linear(x, low).masked_fill_(owner != rows[:, None], 0.0)
                outputs[place].addmm_(narrow, high)
        return outputs

    return project


def _base(
    weights: list[Weights], compute: torch.dtype | None, merges: bool
) -> Callable[[Tensor], Tensor]:
    """Return the function of the joined base layers."""
    parts = [w.merged() if merges else w.weight for w in weights]
    weight = parts[0] if len(parts) == 1 else torch.cat(parts)
    bias = None
    if any(w.bias is not None for w in weights):
        biases = [w.weight.new_zeros(len(w.weight)) if w.bias is None else w.bias for w in weights]
        bias = torch.cat(biases)
    if compute is not None:
        weight, bias = weight.to(compute), None if bias is None else bias.to(compute)
    return reusable(weight, bias)


def _own_adapter(
    weights: list[Weights], compute: torch.dtype | None
) -> list[tuple[int, Tensor, Tensor]]:
    """Return place, low [R, in] and high^T [R, out] of each layer that has an adapter."""
    return [
        (place, _cast(w.low, w.weight, compute), _cast(w.high, w.weight, compute).T)
        for place, w in enumerate(weights)
        if w.low is not None and w.high is not None
    ]


def _several(
    stacks: list[Stack | None], compute: torch.dtype | None
) -> list[tuple[int, Tensor, Tensor, Tensor]]:
    """Return place, low [R, in], high^T [R, out] and owner [R] of each layer with adapters."""
    return [
        (place, s.low.to(compute or s.low.dtype), s.high.to(compute or s.high.dtype).T, s.owner)
        for place, s in enumerate(stacks)
        if s is not None
    ]


def _cast(x: Tensor, weight: Tensor, compute: torch.dtype | None) -> Tensor:
    return x.to(compute or weight.dtype)
