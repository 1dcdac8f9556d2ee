"""AdamW, its state, and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from posttrain.algorithms.config import TrainerConfig
from posttrain.training.offload import OffloadedAdamW


def build_optimizer(
    trainable: Mapping[str, nn.Parameter],
    config: TrainerConfig,
    lr_ratio: float = 1.0,
    offload: bool = False,
) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019); weight decay acts on matrices only.

    Each group stores the ratio of its learning rate to the config's as `lr_scale`; the trainer sets
    the rate itself at every step. The rate of a LoRA's B is `lr_ratio` times that of its A (LoRA+,
    Hayou et al. 2024). With `offload` its state is in the CPU's memory. Raises ValueError if the
    config's rate is 0 and others are not.
    """
    rates = config.learning_rates
    if rates and config.learning_rate == 0:
        raise ValueError(
            "trainer.learning_rate is 0: the method's other learning rates are stored as multiples "
            "of it, set it to a tiny value"
        )
    groups: dict[tuple[float, float, Any], list[nn.Parameter]] = {}
    for name, parameter in trainable.items():
        decay = config.weight_decay if parameter.dim() >= 2 else 0.0
        rate = next((r for prefix, r in rates.items() if name.startswith(prefix)), None)
        scale = 1.0 if rate is None else rate / config.learning_rate
        scale *= lr_ratio if ".lora_B." in name else 1.0
        # one fused update takes plain tensors, or shards over the same ranks
        mesh = getattr(parameter, "device_mesh", None)
        groups.setdefault((decay, scale, mesh), []).append(parameter)
    chosen = [{"params": p, "weight_decay": d, "lr_scale": s} for (d, s, _), p in groups.items()]
    kind = OffloadedAdamW if offload else torch.optim.AdamW
    return kind(chosen, config.learning_rate, config.adam_betas, config.adam_eps, fused=True)


def learning_rate(config: TrainerConfig, step: int, num_steps: int) -> float:
    """Return the learning rate of step `step` (from 0) of `num_steps`: warm-up, then the decay."""
    warmup = config.warmup if config.warmup >= 1 else math.ceil(config.warmup * num_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.scheduler == "constant":
        return config.learning_rate
    progress = (step - warmup) / max(1, num_steps - warmup)
    linear = config.scheduler == "linear"
    shape = 1 - progress if linear else 0.5 * (1 + math.cos(math.pi * progress))
    low = config.min_learning_rate
    return low + (config.learning_rate - low) * shape
