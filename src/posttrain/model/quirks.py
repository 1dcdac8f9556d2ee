"""What differs between architectures apart from their attention: rotations, scales, routers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.model.kernels.linear import Linear

LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Kinds of rotary embedding whose frequencies depend on the length of the sequence."""


def rope_limit(config: Any) -> int | None:
    """Return the length up to which the rotation does not depend on the sequence's length.

    None if it never does. Reads transformers' `rope_parameters`, of the model or by kind of layer.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    sets = [parameters, *(p for p in parameters.values() if isinstance(p, dict))]
    limits = []
    for options in sets:
        kind = str(options.get("rope_type", "default"))
        if any(name in kind for name in LENGTH_DEPENDENT):
            original = options.get("original_max_position_embeddings")
            # transformers scales dynamic rotations beyond the model's own length
            limit = config.max_position_embeddings if "dynamic" in kind else original
            # one less, since at exactly this length dynamic rotations keep those of longer rows
            limits.append(int(limit or config.max_position_embeddings) - ("dynamic" in kind))
    return min(limits, default=None)


@torch.no_grad()
def forget_lengths(backbone: nn.Module, ids: Tensor) -> None:
    """Undo what rotations remember of longer sequences (transformers' dynamic ones do)."""
    for module in backbone.modules():
        if "dynamic" in str(getattr(module, "rope_type", "")) and hasattr(module, "inv_freq"):
            first = torch.zeros(1, 1, dtype=torch.int64, device=ids.device)
            module(torch.zeros(1, device=ids.device), first)


def logit_scale(config: Any) -> float:
    """Return the factor of the logits (Granite, Cohere, Falcon-H1); the probe checks it."""
    scale = 1.0 / getattr(config, "logits_scaling", 1.0)
    for name in ("logit_scale", "lm_head_multiplier"):
        scale *= getattr(config, name, None) or 1.0
    return scale


def routers(model: nn.Module) -> list[str] | None:
    """Return the names of layers that only look linear: routers, whose outputs are choices."""
    linear = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    return [name for name, m in linear if not _is_linear(m)] or None


@torch.no_grad()
def _is_linear(module: nn.Linear) -> bool:
    if type(module) in (nn.Linear, Linear):
        return True
    try:
        out = module(module.weight.new_zeros(2, module.in_features))
    except (TypeError, RuntimeError):
        return False
    return isinstance(out, Tensor) and out.shape == (2, module.out_features)


def silence(models: Iterable[nn.Module]) -> None:
    """Take the modules of models out of training mode, so that none draws at random.

    Layers whose states are recomputed in the backward pass stay in it: transformers reads the mode
    to decide that. Their own numbers are set to 0 by `dropout.turn_off`.
    """
    for model in models:
        for module in model.modules():
            if not getattr(module, "gradient_checkpointing", False):
                module.training = False
