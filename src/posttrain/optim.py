"""AdamW and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from posttrain.algorithms.base import TrainerConfig


def build_optimizer(parameters: Iterable[nn.Parameter], config: TrainerConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019). Weight decay acts on matrices only."""
    trainable = [p for p in parameters if p.requires_grad]
    matrices = [p for p in trainable if p.dim() >= 2]
    vectors = [p for p in trainable if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.adam_betas,
        eps=config.adam_eps,
        fused=True,
    )


def learning_rate(config: TrainerConfig, step: int, num_steps: int) -> float:
    """The rate of step `step` (from 0) of `num_steps`: warm-up, then the schedule to its floor."""
    warmup = config.warmup if config.warmup >= 1 else math.ceil(config.warmup * num_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.scheduler == "constant":
        return config.learning_rate
    progress = (step - warmup) / max(1, num_steps - warmup)
    linear = config.scheduler == "linear"
    shape = 1 - progress if linear else 0.5 * (1 + math.cos(math.pi * progress))
    floor = config.min_learning_rate
    return floor + (config.learning_rate - floor) * shape
