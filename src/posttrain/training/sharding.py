"""Parameters and optimiser state sharded over ranks by FSDP2."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from posttrain.common import distributed
from posttrain.model.backbone import decoder_layers
from posttrain.model.kernels.quantized import quantised
from posttrain.model.language_model import LanguageModel


def shard(policy: LanguageModel) -> None:
    """Shard a policy over all ranks by FSDP2: one group per decoder layer, the root's for the rest.

    Build the optimiser after this: it must hold the shards. `reshard_after_forward=True` reshards
    the root too after every forward pass, so the parameters keep their identity. With the default,
    None, the root would stay unsharded, and an optimiser built then would hold other tensors.
    """
    if policy.unpacked is not None or policy.rope_limit is not None:
        # ranks with other numbers of sequences would wait for each other for ever
        raise ValueError(
            f"{type(policy.causal_lm()).__name__} runs sequences one at a time, which cannot be "
            "sharded: set distributed.strategy: ddp"
        )
    if quantised(policy):
        # FSDP2 would cut a weight's bytes and leave its scales whole: other weights, without a word
        raise ValueError(
            "model.quantization: quantised weights cannot be sharded: set distributed.strategy: "
            "ddp, in which each rank holds them whole"
        )
    if share_tensors(policy):
        raise ValueError(
            "model.adapter: its tensors belong to several layers and cannot be sharded: set "
            "distributed.strategy: ddp"
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    device = next(policy.parameters()).device.type
    mesh = init_device_mesh(device, (distributed.num_ranks(),))
    precision = MixedPrecisionPolicy(param_dtype=policy.autocast, reduce_dtype=torch.float32)
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": precision, "reshard_after_forward": True}
    for network in (policy.model, policy.value_network):
        for layer in decoder_layers(network) if network is not None else ():
            fully_shard(layer, **options)
    fully_shard(policy, **options)


def share_tensors(policy: LanguageModel) -> bool:
    """Whether decoder layers have a parameter in common, which FSDP2 would shard in each."""
    layers = decoder_layers(policy.model)
    owned = Counter(id(p) for layer in layers for p in layer.parameters())
    return max(owned.values(), default=0) > 1
