"""Several LoRA adapters of one base as a single one, by what they add to the weights.

An adapter adds s B A to a weight, s being alpha / r. PEFT's `linear` adds up the A and the B of the
adapters separately, so that their product has cross terms, s B1 A2, that no adapter had; here the
products themselves are combined: linear is exact, with the ranks added up, and the other methods
give the nearest matrices of the rank that is asked for (Eckart and Young 1936).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from posttrain.common.errors import SettingError
from posttrain.model.adapters.peft import check_kind, refuse_not_finite
from posttrain.model.folder import (
    ADAPTER_PREFIX,
    adapter_config,
    base_model,
    check_adapter_file,
    is_adapter,
    refuse_reft,
)
from posttrain.model.integrity import check_tensors

Method = Literal["linear", "svd", "ties", "dare_linear", "dare_ties", "magnitude"]
METHODS = ("linear", "svd", "ties", "dare_linear", "dare_ties", "magnitude")
SPARSE = ("ties", "dare_linear", "dare_ties", "magnitude")
"""Methods that leave out part of each adapter's numbers."""
LOW, HIGH = ".lora_A.weight", ".lora_B.weight"
REFUSED = {
    "use_dora": "a DoRA",
    "modules_to_save": "an adapter that trains layers whole (modules_to_save)",
    "trainable_token_indices": "an adapter that trains tokens (trainable_token_indices)",
    "lora_bias": "a LoRA with biases",
    "bias": "an adapter that trains biases (bias)",
}
CHANGE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Beginnings of PEFT's starts (init_lora_weights) that take something out of the base's weights."""


@dataclass(frozen=True)
class Low:
    """An adapter's matrices by layer."""

    config: dict[str, Any]
    base: str
    pairs: dict[str, tuple[Tensor, Tensor]]
    """A [r, in] and B [out, r] in fp32, B times the scale."""


def read_lora(folder: str) -> Low:
    """Return an adapter's matrices; raise ValueError unless it is a plain LoRA of linear layers.

    Its settings must describe what is in the file, as where it is loaded beside its base."""
    from peft import PeftConfig
    from peft.tuners.tuners_utils import check_target_module_exists
    from safetensors.torch import load_file

    refuse_reft(folder, "merged with others")
    if not is_adapter(folder):
        raise ValueError(
            f"{folder} holds no adapter (adapter_config.json): name runs, checkpoints or folders "
            "that do"
        )
    check_adapter_file(Path(folder))
    check_kind(folder)
    config = adapter_config(folder)
    if config["peft_type"] != "LORA":
        raise ValueError(
            f"{folder} is an adapter of the kind {config['peft_type']}, and only LoRAs are merged "
            "with others: merge it into its base by exporting it as merged"
        )
    for key, what in REFUSED.items():
        if config.get(key) not in (None, False, "none", [], {}):
            raise ValueError(
                f"{folder} is {what}, which cannot be merged with others: merge it into its base "
                "by exporting it as merged"
            )
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(CHANGE_BASE):
        raise ValueError(
            f"{folder} has init_lora_weights: {start}, which changes the base, so that it cannot "
            "be merged with others: save it in PEFT with "
            "path_initial_model_for_weight_conversion, as a plain LoRA"
        )
    if config.get("task_type") == "SEQ_CLS":
        raise ValueError(
            f"{folder} is an adapter of a reward model or classifier, whose head cannot be merged "
            "with others: merge it into its base by exporting it as merged"
        )
    check_tensors(Path(folder) / "adapter_model.safetensors")
    refuse_not_finite(folder)
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    pairs, settings = {}, PeftConfig.from_pretrained(folder)
    for name in sorted(tensors):
        layer = name.removeprefix(ADAPTER_PREFIX).removesuffix(LOW)
        if name.endswith(HIGH):
            continue
        high = tensors.get(name.removesuffix(LOW) + HIGH)
        if not name.endswith(LOW) or high is None or high.dim() != 2:
            raise ValueError(
                f"{folder} holds {name}, which is no low-rank matrix of a linear layer: merge "
                "it into its base by exporting it as merged"
            )
        low = tensors[name].float()
        rank = of_layer(config, "rank_pattern", layer, config["r"])
        if len(low) != rank or not check_target_module_exists(settings, layer):
            says = f"the rank {rank}" if len(low) != rank else "other target_modules"
            raise ValueError(
                f"{folder} holds a matrix of the rank {len(low)} for {layer}, and its "
                f"adapter_config.json names {says}: the two files are not of one adapter; copy "
                "both again"
            )
        pairs[layer] = (low, high.float() * scale(config, layer, len(low)))
    if not pairs:
        raise ValueError(
            f"{folder} holds no low-rank matrices, so that it trained no layer: leave it out"
        )
    return Low(config, base_model(folder), pairs)


def of_layer(config: dict[str, Any], pattern: str, layer: str, otherwise: Any) -> Any:
    """Return what a pattern of an adapter's settings says of a layer, by PEFT's rule."""
    from peft.utils.other import get_pattern_key

    values = config.get(pattern) or {}
    return values.get(get_pattern_key(list(values), layer), otherwise)


def scale(config: dict[str, Any], layer: str, rank: int) -> float:
    """Return what PEFT multiplies a layer's product by: alpha / r, or alpha / sqrt(r)."""
    alpha = of_layer(config, "alpha_pattern", layer, config["lora_alpha"])
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def combine(
    adapters: Sequence[str],
    weights: Sequence[float],
    method: Method,
    rank: int | None,
    density: float | None,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Tensor], float]:
    """Return settings and tensors of the merged adapter, and the largest error of a layer.

    The error is relative to the combined matrix, of what its rank leaves out. Raises ValueError for
    adapters of other bases or shapes, and SettingError for settings that make no sense.
    """
    check_settings(adapters, weights, method, rank, density)
    given = [read_lora(adapter) for adapter in adapters]
    if (
        len({Path(low.base).resolve() if Path(low.base).is_dir() else low.base for low in given})
        > 1
    ):
        bases = ", ".join(dict.fromkeys(low.base for low in given))
        raise ValueError(
            f"the adapters are of different bases ({bases}): merge adapters of one base"
        )
    width = sum(max(len(a) for a, _ in low.pairs.values()) for low in given)
    rank = rank or (width if method == "linear" else width // len(given))
    generator = torch.Generator().manual_seed(seed)
    tensors, worst = {}, 0.0
    for layer in sorted({layer for low in given for layer in low.pairs}):
        parts = [(low.pairs[layer], w) for low, w in zip(given, weights) if layer in low.pairs]
        shapes = {(b.shape[0], a.shape[1]) for (a, b), _ in parts}
        if len(shapes) > 1:
            raise ValueError(
                f"the adapters do not fit together: {layer} has the shapes {shapes}: merge "
                "adapters of one base"
            )
        if method == "linear":
            low = torch.cat([a for (a, _), _ in parts])
            high = torch.cat([b * w for (_, b), w in parts], dim=1)
            error = 0.0
        else:
            deltas = [b @ a for (a, b), _ in parts]
            whole = MIXES[method](deltas, [w for _, w in parts], density or 1.0, generator)
            low, high, error = nearest(whole, rank)
        if not (low.isfinite().all() and high.isfinite().all()):
            raise SettingError(
                "weights", f"{list(weights)} make numbers of {layer} overflow: give smaller ones"
            )
        worst = max(worst, error)
        missing = rank - len(low)
        low = torch.cat([low, low.new_zeros(missing, low.shape[1])])
        high = torch.cat([high, high.new_zeros(high.shape[0], missing)], dim=1)
        tensors[ADAPTER_PREFIX + layer + LOW] = low.contiguous()
        tensors[ADAPTER_PREFIX + layer + HIGH] = high.contiguous()
    layers = [n.removeprefix(ADAPTER_PREFIX).removesuffix(LOW) for n in tensors if n.endswith(LOW)]
    return merged_config(given[0].config, rank, layers), tensors, worst


def check_settings(
    adapters: Sequence[str],
    weights: Sequence[float],
    method: str,
    rank: int | None,
    density: float | None,
) -> None:
    """Raise SettingError for settings of a merge that make no sense."""
    if len(adapters) < 2:
        raise SettingError("adapters", "name two or more; one is merged by posttrain export")
    if len(weights) != len(adapters):
        raise SettingError(
            "weights", f"{len(weights)} numbers for {len(adapters)} adapters: give one for each"
        )
    if not all(math.isfinite(w) for w in weights) or not any(weights):
        raise SettingError("weights", f"expected finite numbers, not all 0, got {list(weights)}")
    if method.endswith("ties") and min(weights) < 0:
        raise SettingError("weights", f"{method} averages, so that no weight may be negative")
    if method not in METHODS:
        raise SettingError("method", f"expected one of {', '.join(METHODS)}, got {method!r}")
    if rank is not None and (rank < 1 or method == "linear"):
        raise SettingError("rank", "linear keeps all ranks; use svd for a smaller one, at least 1")
    if (density is not None) != (method in SPARSE):
        raise SettingError("density", f"{', '.join(SPARSE)} need a density, the others have none")
    if density is not None and not 0 < density <= 1:
        raise SettingError("density", f"expected more than 0 and at most 1, got {density}")


def nearest(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return A [r, in], B [out, r] with B A nearest to a matrix, and the relative error."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    kept, root = min(rank, len(s)), s[:rank].sqrt()
    low, high = root[:, None] * v[:kept], u[:, :kept] * root
    norm = float(s.square().sum().sqrt())
    return low.float(), high.float(), float(s[kept:].square().sum().sqrt()) / (norm or 1.0)


def pruned(delta: Tensor, density: float) -> Tensor:
    """Return a matrix with its largest numbers alone, `density` of them."""
    kept = max(1, round(density * delta.numel()))
    places = delta.abs().flatten().topk(kept).indices
    result = torch.zeros_like(delta).flatten()
    result[places] = delta.flatten()[places]
    return result.view_as(delta)


def dropped(delta: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Return a matrix with a random share of its numbers, scaled up by 1 / density.

    DARE (Yu et al. 2024, arXiv 2311.03099)."""
    return delta * (torch.rand(delta.shape, generator=generator) < density) / density


Mix = Callable[[list[Tensor], list[float], float, torch.Generator], Tensor]


def _summed(deltas: list[Tensor], weights: list[float]) -> Tensor:
    return torch.stack([d * w for d, w in zip(deltas, weights)]).sum(0)


def agreed(deltas: list[Tensor], weights: list[float]) -> Tensor:
    """Return the weighted mean of the numbers that have the sign of the weighted sum.

    TIES (Yadav et al. 2023, arXiv 2306.01708): elect a sign, then average those that agree; a
    number that an adapter does not have (0) takes no part. The scale of the weights is free."""
    stack = torch.stack(deltas)
    by = torch.tensor(weights).view(-1, *[1] * deltas[0].dim())
    chosen = (stack.sign() == (stack * by).sum(0).sign()) & (stack != 0)
    total = (by * chosen).sum(0)
    return (stack * by * chosen).sum(0) / total.where(total > 0, torch.ones_like(total))


MIXES: dict[str, Mix] = {
    "svd": lambda d, w, p, g: _summed(d, w),
    "magnitude": lambda d, w, p, g: _summed([pruned(x, p) for x in d], w),
    "ties": lambda d, w, p, g: agreed([pruned(x, p) for x in d], w),
    "dare_linear": lambda d, w, p, g: _summed([dropped(x, p, g) for x in d], w),
    "dare_ties": lambda d, w, p, g: agreed([dropped(x, p, g) for x in d], w),
}


def merged_config(config: dict[str, Any], rank: int, layers: list[str]) -> dict[str, Any]:
    """Return the settings of a merged adapter, whose scale is 1."""
    kept = ("base_model_name_or_path", "peft_type", "task_type", "fan_in_fan_out", "revision")
    return {key: config[key] for key in kept if key in config} | {
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": layers,
    }


def write_adapter(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write an adapter in PEFT's format."""
    from safetensors.torch import save_file

    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
