"""Parameters and optimiser state sharded over ranks by FSDP2."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import torch

from posttrain.common import distributed
from posttrain.model.backbone import decoder_layers
from posttrain.model.kernels.quantized import quantised
from posttrain.model.language_model import LanguageModel


def shard(policy: LanguageModel, replicas: int = 1) -> None:
    """Shard a policy over all ranks by FSDP2: one group per decoder layer, the root's for the rest.

    With `replicas`, ranks form that many groups of neighbours, each of which holds all shards
    (HSDP). Build the optimiser after this: it must hold the shards. `reshard_after_forward=True`
    reshards the root too after every forward pass, so the parameters keep their identity. With the
    default, None, the root would stay unsharded, and an optimiser built then would hold other
    tensors.
    """
    if problem := obstacle(policy):
        raise ValueError(f"{problem}: set distributed.strategy: ddp, which holds them whole")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    device = next(policy.parameters()).device.type
    ranks = distributed.num_ranks()
    shape = (ranks,) if replicas == 1 else (replicas, ranks // replicas)
    mesh = init_device_mesh(device, shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    precision = MixedPrecisionPolicy(param_dtype=policy.autocast, reduce_dtype=torch.float32)
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": precision, "reshard_after_forward": True}
    for network in (policy.model, policy.value_network):
        for layer in decoder_layers(network) if network is not None else ():
            fully_shard(layer, **options)
    fully_shard(policy, **options)


def machines() -> int:
    """Return the number of machines, on each of which torchrun has started as many ranks.

    Raise ValueError if there are not as many ranks on each.
    """
    ranks, here = distributed.num_ranks(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if len(set(distributed.all_gather(here))) > 1:
        raise ValueError(
            "distributed.strategy: hsdp needs the same number of ranks on every machine"
        )
    return ranks // here


def obstacle(policy: LanguageModel) -> str | None:
    """Return why a policy cannot be sharded, or None."""
    if policy.unpacked is not None or policy.rope_limit is not None:
        # ranks with other numbers of sequences would wait for each other for ever
        name = type(policy.causal_lm()).__name__
        return f"{name} runs sequences one at a time, which cannot be sharded"
    if quantised(policy):
        # FSDP2 would cut a weight's bytes and leave its scales whole: other weights, without a word
        return "model.quantization: quantised weights cannot be sharded"
    if share_tensors(policy):
        return "model.adapter: its tensors belong to several layers and cannot be sharded"
    return None


def share_tensors(policy: LanguageModel) -> bool:
    """Whether decoder layers have a parameter in common, which FSDP2 would shard in each."""
    layers = decoder_layers(policy.model)
    owned = Counter(id(p) for layer in layers for p in layer.parameters())
    return max(owned.values(), default=0) > 1
