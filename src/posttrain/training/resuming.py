"""Checkpoints of other ranks, and of older versions, read by this run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.common import distributed, shards
from posttrain.model.folder import read_info
from posttrain.model.save import restore_weights
from posttrain.training import trainer_state
from posttrain.training.offload import empty_state
from posttrain.training.trainer_state import STATE, Resumable

log = logging.getLogger(__name__)


def load(path: Path, trainer: Resumable, config: dict[str, Any]) -> None:
    """Restore weights, optimiser, schedule, random states and source from a checkpoint.

    Each rank reads its own parts of the tensors. `config` is the resolved one of this run."""
    info = read_info(path)
    if line := other_ranks(info, config):
        log.warning(line)
    state = trainer_state.read_small(path / STATE)
    restore_weights(trainer.models, path)
    if "optimizer" in state:
        restore_old(trainer, state)
    else:
        trainer_state.restore(trainer, path)
    if "source" not in state:
        raise ValueError(
            f"{path}/{STATE} has no state of the data source: it was saved by an older version "
            "of posttrain and cannot be resumed"
        )
    if distributed.rank() < len(state["random"]):
        set_random_state(state["random"][distributed.rank()])
    trainer.load_state_dict(info["trainer"] | {"source": state["source"]})
    trainer.models.policy.version = info["weight_version"]


def other_ranks(info: dict[str, Any], config: dict[str, Any]) -> str:
    """Return a line if a checkpoint was saved by another number or arrangement of ranks, or ""."""
    before = _arrangement(info["num_ranks"], info["config"].get("distributed", {}))
    now = _arrangement(distributed.num_ranks(), config["distributed"])
    if before == now:
        return ""
    return (
        f"resuming on {now} a run that was saved on {before}: results are the same only up to "
        "rounding"
    )


def _arrangement(ranks: int, section: dict[str, Any]) -> str:
    """Return a number of ranks, and how they share the work, in words."""
    if ranks == 1:
        return "one process"
    parts = {key: section.get(key, 1) for key in ("tensor_parallel", "sequence_parallel")}
    also = "".join(f", {key} {size}" for key, size in parts.items() if size > 1)
    return f"{ranks} ranks ({section.get('strategy', 'auto')}{also})"


def restore_old(trainer: Resumable, state: dict[str, Any]) -> None:
    """Restore the tensors of a checkpoint that has each of them whole, in one file."""
    restore_state(trainer.optimizer, trainer.models.trainable(), state["optimizer"])
    for name, value in (state["reference"] if trainer.sync_steps else {}).items():
        shards.copy_full(trainer.models.start[name], value)


def restore_state(
    optimizer: torch.optim.Optimizer, trainable: Mapping[str, nn.Parameter], saved: dict[str, Any]
) -> None:
    """Write whole tensors, by parameter name, into a fresh optimiser."""
    for name, parameter in trainable.items():
        entry: dict[str, Tensor] = {}
        for key, value in saved[name].items():
            entry[key] = empty_state(optimizer, parameter, tuple(value.shape))
            shards.copy_full(entry[key], value)
        if entry:
            optimizer.state[parameter] = entry


def random_state() -> dict[str, Tensor]:
    """Return the state of this rank's random generators, from which dropout draws."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """Restore what random_state() returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
