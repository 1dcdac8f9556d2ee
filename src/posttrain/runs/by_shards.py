"""Which models of a run no rank ever holds whole (`model.by_parts`)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from posttrain.common import distributed
from posttrain.model import by_parts
from posttrain.model.adapters.base import NoAdapter
from posttrain.model.device import choose_dtype
from posttrain.model.empty import load_empty, reads_whole
from posttrain.model.folder import is_adapter
from posttrain.model.language_model import LanguageModel
from posttrain.model.load import check_tokenizer
from posttrain.model.save import is_whole
from posttrain.model.suited import refuse_classifier
from posttrain.runs.config import Config
from posttrain.training.sharding import arrange_ranks, obstacle, shard


def begin(
    config: Config, name: str | None, device: torch.device, scores: bool
) -> tuple[LanguageModel | None, str | None]:
    """Return the policy without its numbers, to which a head may be added before `complete`.

    Else return None, and why each rank must read it whole before it is sharded; None again if each
    is to hold it whole, by distributed.strategy. The same on all ranks."""
    section = config.distributed
    cut = section.tensor_parallel > 1 and name is not None
    if distributed.num_ranks() == 1 or not (_shards(config) or cut):
        return None, None
    if (why := reads_whole(config.model, name) or _needs_copy(config)) is not None:
        return None, why
    assert name is not None
    if not scores:
        refuse_classifier(name)
    compute = choose_dtype(config.model.dtype, device)
    dtype = compute if config.model.trains_adapter else torch.float32
    policy = load_empty(config.model, name, compute, dtype, config.trainer.seed, scores)
    return (None, policy) if isinstance(policy, str) else (policy, None)


def _shards(config: Config) -> bool:
    return config.distributed.strategy in ("fsdp", "hsdp")


def _needs_copy(config: Config) -> str | None:
    """Return why a sampler needs an unsharded copy of the policy, or None."""
    rollout, section = config.rollout, config.distributed
    samples = config.reward is not None or (config.eval is not None and bool(config.eval.tasks))
    if not samples or (rollout is not None and rollout.engine != "native"):
        return None
    if section.strategy != "ddp" or (rollout is not None and rollout.one_step_off):
        return "the native sampler has a copy of it on each rank"
    return None


def complete(policy: LanguageModel, config: Config, device: torch.device) -> LanguageModel:
    """Cut and shard a policy from `begin`, read each rank's part, and check what ranks compute.

    Raises ValueError as `load.prepare_policy` does. A collective."""
    section = config.distributed
    sharded = partial(shard, section=section) if _shards(config) else None
    by_parts.complete(policy, arrange_ranks(section, device), device, sharded)
    if sharded is not None and (problem := obstacle(policy)):
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
    if is_whole(policy) or is_adapter(name) or reads_whole(plain, name):
        return None
    compute = policy.autocast or torch.float32
    other = load_empty(plain, name, compute, compute, seed=0)
    if isinstance(other, str):
        return None
    return complete(other.requires_grad_(False), config, device).eval()
