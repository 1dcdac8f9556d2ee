"""Checkpoints: a run can be killed at any moment and resumes where it stopped, bit for bit.

A checkpoint is a folder that transformers or PEFT load as it is, plus `trainer_state.pt` (tensors
and plain values only) and `checkpoint_info.json` (step, hashes, versions, a manifest of every
file). It is written under a temporary name, synced and renamed, so a half-written folder is never
mistaken for a checkpoint.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from posttrain.common import distributed
from posttrain.common.disk import check_space, write_failure
from posttrain.common.environment import versions
from posttrain.common.files import replacing_folder, sha256
from posttrain.model.folder import CHECKPOINT_INFO, checkpoints_in, read_info, step_of
from posttrain.model.loaded import starts
from posttrain.model.models import Models
from posttrain.model.save import gather_weights, restore_weights, save_model
from posttrain.training.optim import gather_state, restore_state

log = logging.getLogger(__name__)

STATE = "trainer_state.pt"


class Resumable(Protocol):
    """What a checkpoint needs of the trainer."""

    models: Models
    optimizer: torch.optim.AdamW
    step: int
    best_step: int | None

    @property
    def sync_steps(self) -> int | None:
        """Steps after which the reference moves to the policy; None if it never does."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the loop, and under "source" that of the source. A collective."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what state_dict() returned."""


@dataclass
class Checkpoints:
    """The checkpoints of one run directory."""

    run_dir: Path
    keep: int
    config: dict[str, Any]
    """The resolved config; a resumed run must have the same one."""
    data_hash: str

    def save(self, trainer: Resumable) -> None:
        """Write checkpoint-<step>, and delete all but the best and `keep` newest. A collective."""
        final = self.run_dir / f"checkpoint-{trainer.step}"
        if final.exists():
            return
        weights = gather_weights(trainer.models)
        state = trainer.state_dict()
        tensors = {
            "optimizer": gather_state(trainer.optimizer, trainer.models.trainable()),
            "random": distributed.all_gather(random_state()),
            "source": state.pop("source"),
        }
        if trainer.sync_steps:
            start = trainer.models.start.items()
            tensors["reference"] = {name: distributed.full(x).cpu() for name, x in start}
        # every rank gathers, rank 0 writes
        if distributed.rank() == 0:
            newest = self.newest() or "the start"
            check_space(self.run_dir, estimate_bytes(trainer), f", then resume from {newest}")
            try:
                with replacing_folder(final) as temporary:
                    self._write(temporary, trainer, weights, tensors, state)
            except Exception as error:
                if (reason := write_failure(error)) is None:
                    raise
                raise ValueError(
                    f"checkpoint {final.name} could not be written ({reason}): mend that, then "
                    f"resume from {newest}"
                ) from error
            self._prune(trainer.best_step)
        distributed.barrier()

    def newest(self) -> Path | None:
        """Return the newest finished checkpoint, or None."""
        finished = checkpoints_in(self.run_dir)
        return finished[-1] if finished else None

    def load(self, path: Path, trainer: Resumable) -> None:
        """Restore weights, optimiser, schedule, random states and source from a checkpoint."""
        info = read_info(path)
        if info["num_ranks"] != distributed.num_ranks():
            log.warning(
                "resuming on %d ranks a run saved on %d: results are the same only up to rounding",
                distributed.num_ranks(),
                info["num_ranks"],
            )
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
        restore_weights(trainer.models, path)
        restore_state(trainer.optimizer, trainer.models.trainable(), state["optimizer"])
        if "source" not in state:
            raise ValueError(
                f"{path}/{STATE} has no state of the data source: it was saved by an older version "
                "of posttrain and cannot be resumed"
            )
        for name, value in (state["reference"] if trainer.sync_steps else {}).items():
            distributed.copy_full(trainer.models.start[name], value)
        if distributed.rank() < len(state["random"]):
            set_random_state(state["random"][distributed.rank()])
        trainer.load_state_dict(info["trainer"] | {"source": state["source"]})
        trainer.models.policy.version = info["weight_version"]

    def _write(
        self,
        folder: Path,
        trainer: Resumable,
        weights: dict[str, Tensor],
        tensors: dict[str, Any],
        state: dict[str, Any],
    ) -> None:
        save_model(folder, trainer.models, weights)
        torch.save(tensors, folder / STATE)
        info = {
            "step": trainer.step,
            "trainer": state,
            "weight_version": trainer.models.policy.version,
            "num_ranks": distributed.num_ranks(),
            "config": self.config,
            "data_hash": self.data_hash,
            "start": starts(trainer.models),
            "trained_tensors": {name: list(p.shape) for name, p in weights.items()},
            "versions": versions(),
            "files": manifest(folder),
        }
        (folder / CHECKPOINT_INFO).write_text(json.dumps(info, indent=1))

    def _prune(self, best_step: int | None) -> None:
        for path in checkpoints_in(self.run_dir)[: -self.keep]:
            if step_of(path) != best_step:
                shutil.rmtree(path)


def manifest(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder and in its folders, by its path in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


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


def estimate_bytes(trainer: Resumable) -> int:
    """Return the size of a checkpoint's weights, two moments and moving reference, all in fp32."""
    numbers = sum(p.numel() for p in trainer.models.trainable().values())
    return 4 * (4 if trainer.sync_steps else 3) * numbers
