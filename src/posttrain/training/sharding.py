"""Parameters and optimiser state sharded over ranks by FSDP2."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import torch

from posttrain.common import distributed, mesh
from posttrain.model.backbone import decoder_layers
from posttrain.model.kernels.quantized import quantised
from posttrain.model.language_model import LanguageModel
from posttrain.training.config import DistributedConfig


def shard(policy: LanguageModel, section: DistributedConfig | None = None) -> None:
    """Shard a policy over the ranks by FSDP2: one group per decoder layer, the root's for the rest.

    The mesh says over which: all that do not hold other parts of its matrices, or, with replicas,
    each of several groups of them (HSDP). Build the optimiser after this: it must hold the shards.
    `reshard_after_forward=True` reshards the root too after every forward pass, so the parameters
    keep their identity. With the default, None, the root would stay unsharded, and an optimiser
    built then would hold other tensors. For the same reason layers keep what they have gathered, if
    the section says so, in passes with gradients alone: the backward pass reshards them.
    Offloaded shards lie in the CPU's memory, and so do their gradients and the optimiser's state.
    """
    section = section or DistributedConfig()
    if problem := obstacle(policy):
        raise ValueError(f"{problem}: set distributed.strategy: ddp, which holds them whole")
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

    ranks = mesh.current().ranks or mesh.arrange(policy.device.type).ranks
    ranks = ranks["shard"] if ranks.size(0) == 1 else ranks["replicate", "shard"]
    reduced = getattr(torch, section.reduce_dtype)
    precision = MixedPrecisionPolicy(param_dtype=policy.autocast, reduce_dtype=reduced)
    options: dict[str, Any] = {"mesh": ranks, "mp_policy": precision, "reshard_after_forward": True}
    if section.offload == "parameters":
        on_gpu = ranks.device_type == "cuda"
        policy.computes_on = torch.device("cuda", torch.cuda.current_device()) if on_gpu else None
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=on_gpu)
    for network in (policy.model, policy.value_network):
        for layer in decoder_layers(network) if network is not None else ():
            fully_shard(layer, **options)
            if not section.reshard_after_forward:
                layer.register_forward_pre_hook(_keep_for_backward)
    fully_shard(policy, **options)


def _keep_for_backward(layer: Any, args: Any) -> None:
    layer.set_reshard_after_forward(not torch.is_grad_enabled(), recurse=False)


def arrange_ranks(section: DistributedConfig, device: torch.device) -> mesh.Mesh:
    """Return the mesh that a config asks for. Raise ValueError if the ranks do not fit it."""
    replicate = machines() if section.strategy == "hsdp" and distributed.num_ranks() > 1 else 1
    tensor = section.tensor_parallel
    if distributed.num_ranks() // replicate % tensor:
        raise ValueError(
            f"distributed.tensor_parallel: {tensor} does not divide the ranks of a machine: with "
            "distributed.strategy: hsdp each holds whole shards"
        )
    return mesh.arrange(device.type, tensor, section.sequence_parallel, replicate)


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
