"""Estimate, before a run starts, of its memory by part, and whether that fits the device.

A formula, which takes no time. `posttrain plan` (sizing) rehearses a step instead, in seconds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from posttrain.common import distributed
from posttrain.common.batch import sequences_of
from posttrain.model.kernels.quantized import dense_bytes, fits_dense, stored_bytes
from posttrain.model.output_head import chunk_elements
from posttrain.model.quantized import BESIDE
from posttrain.model.workers import num_workers
from posttrain.runs.config import Config
from posttrain.runs.plan import Plan

GIB = 2**30
LIBRARIES = 2**29  # bytes that torch and the other libraries take, on a CPU


@dataclass(frozen=True)
class Estimate:
    """Bytes that a run takes on one device."""

    fixed: dict[str, int]
    """Bytes by part, for the parts that do not depend on trainer.micro_batch_tokens."""
    per_token: float
    """Bytes kept for the backward pass, per token of a micro-batch."""
    tokens: int
    """Tokens of the largest micro-batch."""
    longest: int
    """Tokens of the longest sequence; of the two longest for pairs, which are never cut."""

    @property
    def activations(self) -> int:
        """Bytes kept for the backward pass of the largest micro-batch."""
        return round(self.per_token * self.tokens)

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.fixed.values()) + self.activations


def estimate(plan: Plan) -> str:
    """Return the lines to print: memory by part, whether it fits, and a checkpoint's size."""
    needed = measure(plan)
    parts = needed.fixed | {"activations": needed.activations}
    lines = ["memory, estimated:"]
    lines += [f"  {name:<16}{size / 2**20:>10,.0f} MiB" for name, size in parts.items() if size]
    lines.append(f"  {'total':<16}{needed.total / 2**20:>10,.0f} MiB, without the libraries")
    lines += verdict(plan, needed, available(plan.models.policy.device))
    trainable = sum(p.numel() for p in plan.models.trainable().values())
    lines.append(f"a checkpoint takes {3 * 4 * trainable / 2**20:,.0f} MiB")
    return "\n".join(lines)


def measure(plan: Plan) -> Estimate:
    """Return the estimate of a run; its activations are a rough count.

    A decoder layer of the Llama type keeps about 10 tensors of the hidden size (inputs, norms,
    residuals, queries, attention output) and 4 of the intermediate size. With gradient
    checkpointing it keeps its input alone, and one layer at a time is recomputed.
    """
    config, policy, other = plan.config, plan.models.policy, plan.models.other
    trainable = sum(p.numel() for p in plan.models.trainable().values())
    reference = 4 * trainable * config.trainer.needs_reference
    if other is not None:
        reference = stored_bytes(other)
    rollout = config.rollout
    # quantised weights, de-quantised while completions are sampled, and in the kernel's layout
    dtype = policy.autocast or torch.float32
    sampled = 2 * dense_bytes(policy, dtype) if rollout and fits_dense(policy, dtype) else 0
    copied = rollout is not None and rollout.engine == "native" and rollout.one_step_off
    device = policy.device
    away = "none" if device.type == "cpu" else config.distributed.offload
    alone = device.type == "cpu" and distributed.num_ranks() == 1
    workers = num_workers(torch.get_num_threads(), 4 * trainable) if alone else 1
    fixed = {
        "weights": 0 if away == "parameters" else stored_bytes(policy),
        "gradients": 0 if away == "parameters" else 4 * trainable * workers,
        "optimiser": 0 if away != "none" else 8 * trainable,
        "reference": reference,
        "sampler's copy": 4 * trainable if copied else 0,
        "sampler's weights": sampled,
        "output head": 3 * 4 * chunk_elements(device) * workers,
    }
    shape = policy.causal_lm().config
    size = dtype.itemsize
    hidden = shape.hidden_size
    layer = size * (10 * hidden + 4 * getattr(shape, "intermediate_size", 4 * hidden))
    layers = shape.num_hidden_layers
    per_token = (
        layers * size * hidden + layer if config.model.gradient_checkpointing else (layers * layer)
    )
    lengths = sorted(lengths_of(plan))
    group = config.algorithm.group_size
    batch = sum(lengths[-config.trainer.batch_size * group :])
    longest = sum(lengths[-group:])
    tokens = max(longest, min(config.trainer.token_budget, batch))
    return Estimate(fixed, per_token, tokens, longest)


def lengths_of(plan: Plan) -> list[int]:
    """Return the length in tokens of every sequence to train on; of a rollout the maximum."""
    if plan.data.examples:
        return [len(sequence) for sequence in sequences_of(plan.data.examples)]
    assert plan.config.rollout is not None
    new_tokens = plan.config.rollout.max_new_tokens
    return [len(prompt.input_ids) + new_tokens for prompt in plan.data.prompts]


def available(device: torch.device) -> int:
    """Return the bytes that a run may take on the device, including those it already holds."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)  # the plan has loaded the models
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") - LIBRARIES


def verdict(plan: Plan, needed: Estimate, room: int) -> list[str]:
    """Return a list of one line: whether a run fits into `room` bytes, or what to change."""
    if needed.total <= room:
        return [f"it fits: {room / GIB:,.1f} GiB are available"]
    tokens = int((room - sum(needed.fixed.values())) // needed.per_token)
    problem = f"it does not fit: {needed.total / GIB:,.1f} GiB of {room / GIB:,.1f} GiB"
    if tokens >= needed.longest:
        tokens -= tokens % 64 if tokens >= 64 + needed.longest else 0
        return [f"{problem}; trainer.micro_batch_tokens={tokens} would fit (now {needed.tokens:,})"]
    model, fixes = plan.config.model, []
    if not model.trains_adapter and model.scratch is None:
        fixes.append("model.adapter=lora")
    elif _may_quantise(plan.config):
        fixes.append("model.quantization=nf4")
    if sum(needed.fixed.values()) >= room:
        fixes.append("a smaller model")
        return [f"{problem}, even without activations; try {' or '.join(fixes)}"]
    if not model.gradient_checkpointing:
        fixes.append("model.gradient_checkpointing=true")
    fixes.append(f"a length.max_length below {needed.longest:,}")
    return [f"{problem}, with any trainer.micro_batch_tokens; try {', '.join(fixes)}"]


def _may_quantise(config: Config) -> bool:
    """Whether a run with whole weights would be accepted with weights in few bits."""
    model, rollout = config.model, config.rollout
    whole = model.quantization is None and model.scratch is None
    native = rollout is None or rollout.engine == "native"
    sharded = config.distributed.strategy in ("fsdp", "hsdp")
    return whole and native and not sharded and model.adapter.type in BESIDE
