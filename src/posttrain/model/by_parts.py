"""Models that no rank ever holds whole: built empty, cut and sharded, read in parts, checked."""

from __future__ import annotations

from collections.abc import Callable

import torch

from posttrain.common.mesh import Mesh
from posttrain.model.attention import use_attention
from posttrain.model.backbone import unwrapped
from posttrain.model.config import ModelConfig
from posttrain.model.device import choose_dtype
from posttrain.model.empty import fill, load_empty, reads_whole, sources
from posttrain.model.kernels.fused import use_fused
from posttrain.model.kernels.linear import use_onednn
from posttrain.model.language_model import LanguageModel
from posttrain.model.load import check_policy
from posttrain.model.parallel.split import check_parts
from posttrain.model.parallel.tensor import parallelise
from posttrain.model.suited import refuse_classifier


def load_split(
    config: ModelConfig, name: str, device: torch.device, mesh: Mesh
) -> LanguageModel | str:
    """Return the model in a folder, each matrix of it cut over the mesh's tensor ranks.

    Or return why each rank must read it whole first. Raises ValueError as `load.load_policy` does,
    and if it cannot be cut. A collective."""
    if (why := reads_whole(config, name)) is not None:
        return why
    refuse_classifier(name)
    compute = choose_dtype(config.dtype, device)
    policy = load_empty(config, name, compute, torch.float32, seed=0)
    if isinstance(policy, LanguageModel):
        complete(policy, mesh, device)
    return policy


def complete(
    policy: LanguageModel,
    mesh: Mesh,
    device: torch.device,
    shard: Callable[[LanguageModel], None] | None = None,
) -> None:
    """Cut an empty policy over the mesh's tensor ranks, `shard` it, and read this rank's part.

    Its log-probs are then compared with those of transformers' model, for which one matrix at a
    time is gathered. Raises ValueError if they differ, as `load.check_policy` does, or if it cannot
    be cut. A collective."""
    check_parts(policy, mesh.tensor, mesh.sequence)
    of = sources(policy)
    if mesh.tensor > 1:
        parallelise(policy, mesh.ranks["tensor"])
    if shard is not None:
        shard(policy)
    parted, whole = "distributed.tensor_parallel", "1"
    if shard is not None:
        parted, whole = "distributed.strategy", "ddp"
    fill(policy, of, device, (parted, whole))
    check_policy(policy)
    if policy.value_network is not None:  # elsewhere a copy of what was checked
        use_onednn(policy.value_network)
        use_fused(policy.value_network)
        use_attention(unwrapped(policy.value_network))
    check_parts(policy, mesh.tensor, mesh.sequence)  # what the comparison has shown
