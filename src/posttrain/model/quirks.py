"""What differs between architectures apart from their attention: rotations, scales, routers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.model.kernels.linear import Linear
from posttrain.model.kernels.quantized import is_quantised

LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Kinds of rotary embedding whose frequencies depend on the length of the sequence: dynamic ones
change with every length beyond a limit, longrope once."""


def changes_with_every_length(config: Any) -> bool:
    """Whether the rotation changes with every length beyond `rope_limit`, and not only once."""
    parameters = getattr(config, "rope_parameters", None) or {}
    sets = [parameters, *(p for p in parameters.values() if isinstance(p, dict))]
    return any("dynamic" in str(options.get("rope_type")) for options in sets)


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
    empty, first = torch.zeros(1, device=ids.device), torch.zeros_like(ids[:1][None])
    for module in backbone.modules():
        kind: Any = getattr(module, "rope_type", "")
        if isinstance(kind, dict):  # a rotation for each kind of layer
            for layer, name in kind.items():
                if "dynamic" in str(name):
                    module(empty, first, layer)
        elif "dynamic" in str(kind) and hasattr(module, "inv_freq"):
            module(empty, first)


def forget_rows(model: Any, count: int) -> None:
    """Undo what modules remember of earlier rows, before `count` others (RecurrentGemma's do).

    transformers does not before a prompt of one token."""
    if hasattr(model, "_setup_cache"):
        weight = model.get_input_embeddings().weight
        model._setup_cache(model.config, count, weight.device, weight.dtype)


def logit_cap(config: Any) -> float | None:
    """Return the soft cap of the logits (Gemma, RecurrentGemma, xLSTM); the probe checks it."""
    names = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    caps = [getattr(config, name, None) for name in names]
    return next((float(cap) for cap in caps if cap is not None), None)


def logit_scale(config: Any) -> float:
    """Return the factor of the logits (Granite, Cohere, Inkling, ...); the probe checks it."""
    scale = 1.0 / getattr(config, "logits_scaling", 1.0)
    scale /= getattr(config, "logits_mup_width_multiplier", None) or 1.0
    for name in ("logit_scale", "lm_head_multiplier"):
        scale *= getattr(config, name, None) or 1.0
    return scale


def are_tied(model: Any) -> bool:
    """Whether a causal LM's output head is its embedding."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def not_adapted(model: nn.Module) -> list[str] | None:
    """Return the names of linear layers that `all-linear` leaves out; None if there are none.

    Routers only look linear: their outputs are choices. State-space layers hand the weights of
    some projections to a kernel, past the adapter."""
    linear = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    return [n for n, m in linear if not _is_linear(m)] + handed_on(model) or None


def handed_on(model: nn.Module) -> list[str]:
    """Return the names of the projections of state-space layers (Mamba) that kernels read."""
    mixers = [name for name, m in model.named_modules() if hasattr(m, "ssm_state_size")]
    known = dict(model.named_modules())
    names = [f"{mixer}.{end}" for mixer in mixers for end in ("out_proj", "dt_proj")]
    return [name for name in names if isinstance(known.get(name), nn.Linear)]


@torch.no_grad()
def _is_linear(module: nn.Linear) -> bool:
    if type(module) in (nn.Linear, Linear) or is_quantised(module):
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
