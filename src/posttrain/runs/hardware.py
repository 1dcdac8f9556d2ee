"""What a run computes on, in words: device, dtype, attention path, and why."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from posttrain.common.batch import Sequence, pack
from posttrain.model.attention import NAME, attend
from posttrain.model.attention_forms import Form, chunk_size, no_flash
from posttrain.model.config import ModelConfig
from posttrain.model.device import device_reason, dtype_reason
from posttrain.model.language_model import LanguageModel


def hardware(config: ModelConfig, policy: LanguageModel) -> list[str]:
    """Return the lines about the device and the attention path. A collective if sharded."""
    device = policy.device
    dtype = dtype_reason(config.dtype, policy.autocast or torch.float32, device)
    exact = ", deterministic" if config.deterministic and device.type == "cuda" else ""
    return [
        f"device: {device_reason(config.device, device)}; {dtype}{exact}",
        f"attention: {attention_path(policy)}",
    ]


@torch.no_grad()
def attention_path(policy: LanguageModel) -> str:
    """Return how the policy's layers attend in training, from a pass over two tokens."""
    from transformers import AttentionInterface

    if policy.unpacked is not None:
        return f"transformers' own, one sequence at a time, since {policy.unpacked}"
    reasons: dict[str | None, None] = {}  # in order

    def spy(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **keys: Any
    ) -> Any:
        form = Form(
            dropout=keys.get("dropout", 0.0),
            chunk=chunk_size(module),
            softcap=keys.get("softcap"),
            sinks=keys.get("s_aux"),
        )
        reasons[no_flash(form, key, value)] = None
        return attend(module, query, key, value, *rest, **keys)

    batch = pack([Sequence(torch.zeros(2, dtype=torch.int64), torch.arange(2) > 0)])
    was_training = policy.training
    policy.train()  # with its dropout, if it has any
    AttentionInterface.register(NAME, spy)
    try:
        policy(batch.to(policy.device))
    finally:
        AttentionInterface.register(NAME, attend)
        policy.train(was_training)
    return "; ".join(
        "one flash kernel for all sequences of a micro-batch"
        if reason is None
        else f"sequence by sequence, since {reason}"
        for reason in reasons
    )
