"""One step of a method on a device, with its gradient and, on CUDA, what it cost."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny
import torch
from device_counts import Watch

from posttrain.algorithms import ALGORITHMS
from posttrain.common.batch import Batch
from posttrain.model.config import ModelConfig
from posttrain.model.load import prepare_policy
from posttrain.model.models import Models

METHODS = list(ALGORITHMS)
FORMS = [(dtype, lora) for dtype in ("float32", "bfloat16") for lora in (False, True)]
BUDGET = Path(__file__).parents[1] / "cuda" / "budget.json"
SLACK = 1.05  # another version of transformers or PEFT may launch a few kernels more


def form_name(dtype: str, lora: bool) -> str:
    return f"{dtype} {'LoRA' if lora else 'full'}"


@dataclass
class Cost:
    """Of one micro-batch, the preparation of the step included."""

    kernels: float
    waits: float
    fp32_share: float

    def exceeds(self, budget: Cost) -> str:
        """What is above the budget, or ''."""
        kernels, waits = SLACK * budget.kernels, SLACK * budget.waits
        if self.kernels > kernels:
            return f"{self.kernels:.0f} kernels in a micro-batch, the budget is {kernels:.0f}"
        if self.waits > waits:
            return f"{self.waits:.0f} waits in a micro-batch, the budget is {waits:.0f}"
        return ""


def recorded() -> dict[str, dict[str, Cost]]:
    """The costs of each method by its form, as scripts/gpu_costs.py found them."""
    found = json.loads(BUDGET.read_text())
    return {
        name: {form: Cost(*costs) for form, costs in forms.items()} for name, forms in found.items()
    }


def budget(name: str, form: str) -> Cost:
    """A method's recorded cost; for one registered later, the highest of any other."""
    costs = recorded()
    if name in costs:
        return costs[name][form]
    return Cost(
        *(max(getattr(c[form], x) for c in costs.values()) for x in ("kernels", "waits")), 0
    )


def models(device: str, dtype: str, lora: bool, **changes: Any) -> Models:
    model, kind = tiny.causal_lm(**({"initializer_range": 0.1} | changes)), getattr(torch, dtype)
    config = ModelConfig(name="tiny", use_lora=lora)
    model = model.to(kind) if lora else model
    policy = prepare_policy(model, config, torch.device(device), kind, seed=0)
    assert policy.unpacked is None, policy.unpacked  # the probe does without what raised
    return Models(policy, tokenizer=None, stop_token_ids=[tiny.STOP])


@dataclass
class Step:
    gradients: dict[str, torch.Tensor]  # on the CPU
    cost: Cost
    waits: dict[tuple[str, str], int]
    """By kind and source line."""

    def distance(self, other: Step) -> float:
        """The largest error of a tensor of gradients, relative to its largest entry."""
        assert self.gradients.keys() == other.gradients.keys()
        return max(
            float((self.gradients[name] - grad).abs().max()) / max(float(grad.abs().max()), 1e-6)
            for name, grad in other.gradients.items()
        )


@functools.cache
def batch_of(name: str, keys: str) -> Batch:
    source = tiny.trainer_of(name, models("cpu", "float32", False), **json.loads(keys))
    return tiny.raw_batch(source.algorithm, source.models, source.config)


def step(name: str, device: str, dtype: str, lora: bool, **keys: Any) -> Step:
    """The step of a policy that is no longer its reference, on a batch that the CPU made."""
    trainer = tiny.trainer_of(name, models(device, dtype, lora), micro_batch_tokens=60, **keys)
    batch = batch_of(name, json.dumps(keys))
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in trainer.models.trainable().values():
            parameter.add_(0.02 * torch.randn(parameter.shape).to(parameter.device))
    with Watch() as watch:
        batch = trainer.algorithm.prepare(batch.to(device), trainer.models, trainer.config)
        found = tiny.gradients(trainer, batch)
    parts = len(list(trainer._micro_batches(batch)))
    cost = Cost(watch.num_kernels / parts, watch.num_waits / parts, watch.fp32_share)
    return Step({n: g.cpu() for n, g in found.items()}, cost, dict(watch.waits))
