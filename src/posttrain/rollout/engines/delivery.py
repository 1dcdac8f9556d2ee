"""The policy's weights as a folder, for engines that load them from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.common import distributed, shards
from posttrain.common.files import replacing_folder
from posttrain.model.save import buffers, save_adapter


def write_adapter(folder: Path, policy: Any) -> None:
    """Write the policy's adapter to `folder`, which appears completely or not at all.

    A collective: sharded weights are gathered on every rank; rank 0 writes, and may raise OSError.
    """
    trainable = ((n, p) for n, p in policy.named_parameters() if p.requires_grad)
    weights = {name: shards.full(p.detach()).cpu() for name, p in trainable}
    if distributed.rank() != 0:
        return
    with replacing_folder(folder, durable=False) as temporary:
        save_adapter(temporary, policy.model, weights)


def write_weights(folder: Path, policy: Any) -> None:
    """Write all of the policy's weights to `folder`, as transformers saves a model.

    The folder appears completely or not at all. A collective: sharded weights are gathered on every
    rank; rank 0 writes, and may raise OSError.
    """
    model = policy.causal_lm()
    weights = {}
    for name, parameter in model.named_parameters():
        value = shards.full(parameter.detach())
        if distributed.rank() == 0:  # the others keep no copy
            weights[name] = value.cpu()
    if distributed.rank() != 0:
        return
    with replacing_folder(folder, durable=False) as temporary:
        model.save_pretrained(temporary, state_dict=weights | buffers(model))


def has_adapter(policy: Any) -> bool:
    """Whether the policy is a PEFT model."""
    return hasattr(policy.model, "peft_config")
