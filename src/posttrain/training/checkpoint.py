"""Checkpoints: a run can be killed at any moment and resumes where it stopped, bit for bit.

A checkpoint is a folder that transformers or PEFT load as it is, plus `trainer_state.pt` (plain
values and small tensors), `trainer_state/` (the trainer's other tensors, in shards) and
`checkpoint_info.json` (step, hashes, versions, a manifest of every file). It is written under a
temporary name, synced and renamed, so a half-written folder is never mistaken for a checkpoint.
Training goes on meanwhile; the next save, or the end of the run, waits for it.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.common import distributed
from posttrain.common.disk import check_space, write_failure
from posttrain.common.environment import versions
from posttrain.common.files import replacing_folder
from posttrain.common.interrupt import Interrupted
from posttrain.model.folder import CHECKPOINT_INFO, checkpoints_in, step_of
from posttrain.model.loaded import starts
from posttrain.model.save import gather_weights
from posttrain.training import trainer_state
from posttrain.training.background import Writing
from posttrain.training.resuming import load, random_state
from posttrain.training.staging import (
    contents,
    estimate_bytes,
    is_of_disk,
    manifest,
    room_for_copy,
    write_small,
)
from posttrain.training.trainer_state import Resumable

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds that a run which ends in an error waits for the checkpoint on its way."""


@dataclass
class Checkpoints:
    """The checkpoints of one run directory."""

    run_dir: Path
    keep: int
    config: dict[str, Any]
    """The resolved config; a resumed run must have the same one."""
    data_hash: str
    writing: Writing | None = None
    """The checkpoint that is on its way to the disk, if any."""

    def save(self, trainer: Resumable) -> None:
        """Write checkpoint-<step>, and delete all but the best and `keep` newest. A collective.

        Training may go on when it returns. It waits for the checkpoint before."""
        if self.writing is not None and self.writing.step == trainer.step:
            return
        self.wait()
        final = self.run_dir / f"checkpoint-{trainer.step}"
        if distributed.from_rank_0(final.exists()):
            return
        copied = room_for_copy(trainer)
        state = trainer.state_dict()
        small = {"random": distributed.all_gather(random_state()), "source": state.pop("source")}
        weights = gather_weights(trainer.models, copied)
        parts, index = trainer_state.own_parts(trainer_state.tensors_of(trainer), copied)
        info = self._info(trainer, state)
        holding, temporary, problem = ExitStack(), final, ""
        if distributed.rank() == 0:
            try:
                newest = self.newest() or "the start"
                check_space(self.run_dir, estimate_bytes(trainer), f", then resume from {newest}")
                temporary = holding.enter_context(replacing_folder(final))
                write_small(temporary, trainer.models, weights, small, index)
            except Exception as error:
                with suppress(Exception), holding:
                    raise
                if not is_of_disk(error):
                    raise
                problem = self._problem(error, trainer.step)
        temporary, problem = distributed.from_rank_0((temporary, problem))
        if problem:
            raise ValueError(problem)
        best_step = trainer.best_step
        self.writing = Writing(
            trainer.step,
            temporary,
            contents(trainer.models, weights, parts),
            holding,
            lambda hashes: _describe(temporary, info, hashes),
            lambda: self._prune(best_step),
            self.config["distributed"]["timeout"],
        )
        self.writing.start()
        if not copied:
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint that is on its way is on the disk. A collective.

        Raises ValueError on all ranks if it could not be written."""
        writing, self.writing = self.writing, None
        if writing is None:
            return
        error = writing.join()
        said = "" if error is None else self._problem(error, writing.step)
        problems = [problem for problem in distributed.all_gather(said) if problem]
        if error is not None and not is_of_disk(error):
            raise error
        if problems:
            raise ValueError(problems[0]) from error

    @contextmanager
    def settling(self) -> Iterator[None]:
        """Wait for a checkpoint on its way when the block ends.

        After KeyboardInterrupt it is abandoned. After an error that may be this rank's alone the
        wait is no collective, and short if it is one of the machine."""
        try:
            yield
        except Interrupted:
            self.wait()
            raise
        except BaseException as error:
            if (writing := self.writing) is not None:
                if not isinstance(error, Exception):
                    writing.stop.set()
                patient = isinstance(error, ValueError) or distributed.num_ranks() == 1
                if (left := writing.join(None if patient else PATIENCE)) is not None:
                    log.warning(
                        "checkpoint-%d was not written: %s", writing.step, left or "the end"
                    )
            raise
        self.wait()

    def newest(self) -> Path | None:
        """Return the newest finished checkpoint, or None; one on its way has time to arrive."""
        if self.writing is not None:
            self.writing.thread.join(PATIENCE)
        finished = checkpoints_in(self.run_dir)
        return finished[-1] if finished else None

    def load(self, path: Path, trainer: Resumable) -> None:
        """Restore weights, optimiser, schedule, random states and source from a checkpoint."""
        load(path, trainer, self.config)

    def _info(self, trainer: Resumable, state: dict[str, Any]) -> dict[str, Any]:
        return {
            "step": trainer.step,
            "trainer": state,
            "weight_version": trainer.models.policy.version,
            "num_ranks": distributed.num_ranks(),
            "config": self.config,
            "data_hash": self.data_hash,
            "start": starts(trainer.models),
            "trained_tensors": {n: list(p.shape) for n, p in trainer.models.trainable().items()},
            "versions": versions(),
        }

    def _problem(self, error: BaseException, step: int) -> str:
        """Return in one line why a checkpoint is not on the disk."""
        if (reason := write_failure(error)) is None:
            return str(error) or repr(error)  # never empty: that would be no problem
        newest = self.newest() or "the start"
        return (
            f"checkpoint-{step} could not be written ({reason}): mend that, then resume from "
            f"{newest}"
        )

    def _prune(self, best_step: int | None) -> None:
        for path in checkpoints_in(self.run_dir)[: -self.keep]:
            if step_of(path) != best_step:
                shutil.rmtree(path)


def _describe(folder: Path, info: dict[str, Any], hashes: dict[str, str]) -> None:
    """Write checkpoint_info.json, the last file of a checkpoint."""
    content = info | {"files": manifest(folder, hashes)}
    (folder / CHECKPOINT_INFO).write_text(json.dumps(content, indent=1))
