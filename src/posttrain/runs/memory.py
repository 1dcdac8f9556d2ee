"""What a run would need, said before it starts."""

from __future__ import annotations

import torch

from posttrain.common.batch import sequences_of
from posttrain.model.output_head import CHUNK_ELEMENTS
from posttrain.runs.plan import Plan


def estimate(plan: Plan) -> str:
    """Memory by part and the size of a checkpoint, in lines. Activations are a rough count."""
    policy = plan.models.policy
    trainable = sum(p.numel() for p in plan.models.trainable().values())
    weights = sum(p.numel() * p.element_size() for p in policy.parameters())
    other = plan.models.other
    reference = 4 * trainable * plan.config.trainer.needs_reference
    if other is not None:
        reference = sum(p.numel() * p.element_size() for p in other.parameters())
    rollout = plan.config.rollout
    copied = rollout is not None and rollout.engine == "native" and rollout.one_step_off
    sampler_copy = 4 * trainable if copied else 0
    parts = {
        "weights": weights,
        "gradients": 4 * trainable,
        "optimiser": 8 * trainable,
        "reference": reference,
        "sampler's copy": sampler_copy,
        "activations": activations(plan),
        "output head": 3 * 4 * CHUNK_ELEMENTS,
    }
    lines = ["memory, estimated:"]
    lines += [f"  {name:<16}{size / 2**20:>10,.0f} MiB" for name, size in parts.items() if size]
    lines.append(f"  {'total':<16}{sum(parts.values()) / 2**20:>10,.0f} MiB and the libraries'")
    lines.append(f"a checkpoint takes {3 * 4 * trainable / 2**20:,.0f} MiB")
    return "\n".join(lines)


def activations(plan: Plan) -> int:
    """Bytes kept for the backward pass of one micro-batch.

    A decoder layer of the Llama type keeps about 10 tensors of the hidden size (inputs, norms,
    residuals, queries, attention output) and 4 of the intermediate size; with gradient
    checkpointing, its input alone and one layer's worth while that is recomputed.
    """
    policy = plan.models.policy
    config = policy.causal_lm().config
    lengths = [len(s) for s in sequences_of(plan.data.examples)] or [
        len(p.input_ids) + plan.config.rollout.max_new_tokens
        for p in plan.data.prompts
        if plan.config.rollout is not None
    ]
    longest, batch = max(lengths), sorted(lengths)[-plan.config.trainer.batch_size :]
    tokens = max(longest, min(plan.config.trainer.token_budget, sum(batch)))
    size = torch.tensor([], dtype=policy.autocast or torch.float32).element_size()
    hidden = config.hidden_size
    per_layer = tokens * size * (10 * hidden + 4 * getattr(config, "intermediate_size", 4 * hidden))
    if plan.config.model.gradient_checkpointing:
        return config.num_hidden_layers * tokens * size * hidden + per_layer
    return config.num_hidden_layers * per_layer
