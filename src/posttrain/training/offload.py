"""AdamW whose state is in the CPU's memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from posttrain.model.parts import local


class OffloadedAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019) that moves each parameter's state to it for its update.

    The GPU holds the state of one parameter at a time instead of 8 bytes for each trainable number,
    and updates it with the same kernel: the results have the same bits. A step moves these bytes
    to the GPU and back.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the parameters that have gradients. Return None."""
        assert closure is None
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                kept = self.state[parameter]
                if not kept:
                    kept |= {key: state_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
                    kept["step"] = torch.zeros((), dtype=torch.float32)
                weight = local(parameter)
                moved = {
                    key: local(value).to(weight.device, non_blocking=True)
                    for key, value in kept.items()
                }
                adamw(
                    [weight],
                    [_gradient(parameter)],
                    [moved["exp_avg"]],
                    [moved["exp_avg_sq"]],
                    [],
                    [moved["step"]],
                    fused=True,
                    amsgrad=False,
                    beta1=beta1,
                    beta2=beta2,
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    maximize=False,
                )
                for key, value in moved.items():
                    if value is not local(kept[key]):
                        local(kept[key]).copy_(value)  # waits: a checkpoint may read it next


def state_like(parameter: Tensor) -> Tensor:
    """Return zeros in the CPU's memory, sharded as a parameter is; pinned if that is on a GPU."""
    zeros = torch.zeros_like(parameter, device="cpu")
    if parameter.is_cuda:
        if hasattr(zeros, "_local_tensor"):
            zeros._local_tensor = zeros._local_tensor.pin_memory()
        else:
            zeros = zeros.pin_memory()
    return zeros


def empty_state(optimizer: Any, parameter: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return zeros for a tensor of a parameter's state, where the optimiser keeps it."""
    offloaded = isinstance(optimizer, OffloadedAdamW)
    if shape == tuple(parameter.shape):
        return state_like(parameter) if offloaded else torch.zeros_like(parameter)
    return torch.zeros(shape, device="cpu" if offloaded else parameter.device)


def _gradient(parameter: Tensor) -> Tensor:
    """Return this rank's part of a gradient, which has to be the part of the same numbers."""
    grad: Any = parameter.grad
    assert getattr(grad, "placements", None) == getattr(parameter, "placements", None)
    return local(grad)
