"""Starts of a LoRA that change the base: PiSSA and OLoRA.

With W the original weight and s = alpha / r, the base becomes W - s B0 A0 and the adapter begins as
A0, B0, so that the model begins as it was, up to rounding. A checkpoint holds a plain LoRA of rank
2r on the original base: W - s B0 A0 + s B A = W + s [B, -B0] [A; A0]. Its first r rows of A and
columns of B are the trained ones, from which a run resumes.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.model.adapters.names import first_names, saved_names


def check_base(model: Any, kind: str) -> None:
    """Raise ValueError unless a base's weights are fp32, which keeps their change exact."""
    dtype = next(model.parameters()).dtype
    if dtype != torch.float32:
        raise ValueError(
            f"model.adapter: {kind} changes the model's weights, which {str(dtype)[6:]} would "
            "round, so that a checkpoint would not be what was trained: set model.dtype: float32"
        )


def keep_start(model: Any, kind: str) -> None:
    """Keep A0 and B0 of a PEFT model's new adapter, by the names in its file, in `lora_start`.

    Raises ValueError for a layer that PEFT gives another start than the kind's, and for one whose
    weight is another layer's too, such as the embedding's: PEFT has changed both then."""
    state, names = model.state_dict(), saved_names(model)
    if other := [name for name in names if ".lora_" in name and not _is_factor(name)]:
        layer = other[0].partition(".lora_")[0].rpartition(".")[2]
        raise ValueError(
            f"model.adapter.target_modules: {kind} is defined for linear layers, not for {layer}"
        )
    if shared := _shares_its_weight(model):
        raise ValueError(
            f"model.adapter.target_modules: {kind} would change the weight of {shared}, which is "
            "another layer's too, as a tied head's is the embedding's: leave it out, or use type: "
            "lora"
        )
    model.lora_start = {
        name: state[own].detach().cpu().clone() for name, own in names.items() if _is_factor(name)
    }


def _shares_its_weight(model: Any) -> str | None:
    """Return the name of an adapted layer whose weight another layer holds too; None if none is."""
    named = model.named_parameters(remove_duplicate=False)
    holders = Counter(id(parameter) for _, parameter in named)
    for name, module in model.named_modules():
        base = getattr(module, "base_layer", None)
        if hasattr(module, "lora_A") and base is not None and holders[id(base.weight)] > 1:
            return str(name.rpartition(".")[2])
    return None


def as_plain_lora(
    model: Any, config: Any, tensors: dict[str, Tensor]
) -> tuple[Any, dict[str, Tensor]]:
    """Return the config and tensors of an adapter's file on the original base.

    Those of an adapter that did not change its base stay as they are."""
    if (start := getattr(model, "lora_start", None)) is None:
        return config, tensors
    config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
    config.init_lora_weights = True
    config.rank_pattern = {name: 2 * rank for name, rank in (config.rank_pattern or {}).items()}
    config.alpha_pattern = {name: 2 * x for name, x in (config.alpha_pattern or {}).items()}
    joined = {
        name: torch.cat([tensors[name], _sign(name) * first], dim=_side(name))
        for name, first in start.items()
    }
    return config, tensors | joined


def own_part(model: Any, tensors: dict[str, Tensor], path: Path | str) -> dict[str, Tensor]:
    """Return an adapter's tensors as the model has them, from those in its file.

    Raises ValueError if the file's start is not the model's: the base would be another one; and as
    `check_drawn` does."""
    parts = dict(tensors)
    for name, first in getattr(model, "lora_start", {}).items():
        if name not in tensors:
            continue
        side = _side(name)
        trained, rest = tensors[name].split(first.shape[side], dim=side)
        if not torch.equal(rest, _sign(name) * first):
            raise ValueError(
                f"{path} begins from other singular values or factors of the base's weights than "
                "this machine computes, so that the run cannot be resumed here: train its "
                "checkpoint further as a new run, with model.name"
            )
        parts[name] = trained.contiguous()
    check_drawn(model, parts, path)
    return parts


def check_drawn(model: Any, tensors: dict[str, Tensor], path: Path | str) -> None:
    """Raise ValueError if what an adapter draws and does not train is not what its file holds.

    It is drawn again when a run is resumed, with a seed, and another version of torch may draw
    other numbers. Sharded tensors are not compared."""
    state, first = model.state_dict(), first_names(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, own in saved_names(model).items():
        value = state[own]
        if first.get(own) in trained or name not in tensors or hasattr(value, "full_tensor"):
            continue
        if not torch.equal(value.cpu(), tensors[name].to(value.dtype)):
            raise ValueError(
                f"{path}: {name} is not what this machine draws with the same seed, so that the "
                "run cannot be resumed here: train its checkpoint further as a new run, with "
                "model.name"
            )


def _is_factor(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _side(name: str) -> int:
    """Return the dimension of A or B that is the rank."""
    return 0 if ".lora_A." in name else 1


def _sign(name: str) -> int:
    return 1 if ".lora_A." in name else -1
