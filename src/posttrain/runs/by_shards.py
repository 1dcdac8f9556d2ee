"""Models that no rank holds whole: built empty, sharded, read in parts, checked."""

from __future__ import annotations

import logging
from typing import Any

import torch

from posttrain.common import distributed
from posttrain.model.adapters.base import NoAdapter
from posttrain.model.attention import use_attention
from posttrain.model.backbone import unwrapped
from posttrain.model.device import choose_dtype
from posttrain.model.empty import fill, load_empty, reads_whole, sources
from posttrain.model.folder import is_adapter
from posttrain.model.kernels.fused import use_fused
from posttrain.model.kernels.linear import use_onednn
from posttrain.model.language_model import LanguageModel
from posttrain.model.load import check_policy, check_tokenizer
from posttrain.model.suited import refuse_classifier
from posttrain.runs.config import Config
from posttrain.training.sharding import arrange_ranks, obstacle, shard

log = logging.getLogger(__name__)


def begin(
    config: Config, name: str | None, device: torch.device, scores: bool
) -> LanguageModel | None:
    """Return the policy without its numbers, to which a head may be added before `complete`.

    None if each rank is to hold it whole, by distributed.strategy or, which a line says, because
    something else needs whole weights. The same on all ranks."""
    section = config.distributed
    if distributed.num_ranks() == 1 or section.strategy not in ("fsdp", "hsdp"):
        return None
    why = reads_whole(config.model, name) or _needs_copy(config)
    if section.tensor_parallel > 1:
        why = "distributed.tensor_parallel splits a model that is whole"
    policy: LanguageModel | str | None = None
    if why is None:
        assert name is not None
        if not scores:
            refuse_classifier(name)
        compute = choose_dtype(config.model.dtype, device)
        dtype = compute if config.model.trains_adapter else torch.float32
        policy = load_empty(config.model, name, compute, dtype, config.trainer.seed, scores)
    if isinstance(policy, LanguageModel):
        return policy
    if distributed.rank() == 0:
        log.warning("every rank reads the whole model before it is sharded: %s", why or policy)
    return None


def _needs_copy(config: Config) -> str | None:
    """Return why a sampler needs an unsharded copy of the policy, or None."""
    native = config.rollout is None or config.rollout.engine == "native"
    if native and (config.algorithm.online or (config.eval is not None and config.eval.tasks)):
        return "the native sampler has a copy of it on each rank"
    return None


def complete(policy: LanguageModel, config: Config, device: torch.device) -> LanguageModel:
    """Shard a policy from `begin`, read each rank's part, and check what the ranks compute.

    Raises ValueError as `load.prepare_policy` does. A collective."""
    arrange_ranks(config.distributed, device)
    of = sources(policy)
    shard(policy, config.distributed)
    fill(policy, of, device)
    check_policy(policy)
    if policy.value_network is not None:  # elsewhere a copy of what was checked
        use_onednn(policy.value_network)
        use_fused(policy.value_network)
        use_attention(unwrapped(policy.value_network))
    if problem := obstacle(policy):
        raise ValueError(f"{problem}: set distributed.strategy: ddp, which holds them whole")
    return policy


def reference(
    config: Config, name: str, policy: LanguageModel, tokenizer: Any, device: torch.device
) -> LanguageModel | None:
    """Return a separate reference model in parts, frozen, in the compute dtype; None as `begin`."""
    check_tokenizer(name, tokenizer)
    plain = config.model.model_copy(
        update={"adapter": NoAdapter(), "gradient_checkpointing": False, "quantization": None}
    )
    if not distributed.is_sharded(policy) or is_adapter(name) or reads_whole(plain, name):
        return None
    compute = policy.autocast or torch.float32
    other = load_empty(plain, name, compute, compute, seed=0)
    if isinstance(other, str):
        return None
    return complete(other.requires_grad_(False), config, device).eval()
