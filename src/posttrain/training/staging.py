"""A checkpoint made ready while training waits: small files, and tensors to be written."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.common import distributed
from posttrain.common.disk import size, write_failure
from posttrain.common.files import sha256
from posttrain.model.device import free_memory
from posttrain.model.integrity import INDEX
from posttrain.model.models import Models
from posttrain.model.parts import local
from posttrain.model.save import describe_model, files_of, index_of, metadata_of, saved_tensors
from posttrain.training import trainer_state
from posttrain.training.background import Content

log = logging.getLogger(__name__)


def write_small(
    folder: Path,
    models: Models,
    weights: dict[str, Tensor],
    small: dict[str, Any],
    index: trainer_state.Index,
) -> None:
    """Write, on rank 0, everything of a checkpoint except the files of `contents`."""
    describe_model(folder, models, weights)
    if (of_weights := index_of(models, saved_tensors(models))) is not None:
        (folder / INDEX).write_text(json.dumps(of_weights, indent=2))
    torch.save(small, folder / trainer_state.STATE)
    (folder / trainer_state.FOLDER).mkdir()
    (folder / trainer_state.FOLDER / trainer_state.INDEX).write_text(json.dumps(index))


def contents(
    models: Models, weights: dict[str, Tensor], parts: dict[str, Tensor]
) -> dict[str, Content]:
    """Return the files of tensors that this rank writes, by path in the checkpoint."""
    named = files_of(models, weights, saved_tensors(models))
    files = {file: Content(tensors, metadata_of(file)) for file, tensors in named.items()}
    if parts:
        own = f"{trainer_state.FOLDER}/{trainer_state.file_of(distributed.rank())}"
        files[own] = Content(parts)
    return files


def manifest(folder: Path, known: dict[str, str]) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder and in its folders, by its path in it.

    Those that are `known` are not read again."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = ((path.relative_to(folder).as_posix(), path) for path in files)
    return {name: known.get(name) or sha256(path) for name, path in named}


def room_for_copy(trainer: trainer_state.Resumable) -> bool:
    """Whether the tensors of a checkpoint may be copied, so that training goes on meanwhile.

    On every rank the memory must hold twice the copy. A collective."""
    held = [*trainer_state.tensors_of(trainer).values(), *saved_tensors(trainer.models).values()]
    needed = sum(local(x).numel() * x.element_size() for x in held)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    free = free_memory(torch.device("cpu")) // here
    room = bool(min(distributed.all_gather(free - 2 * needed)) >= 0)
    if not room and distributed.rank() == 0:
        log.warning(
            "a checkpoint is written while training waits: a copy of its tensors takes %s, and %s "
            "of memory are free",
            size(needed),
            size(free),
        )
    return room


def estimate_bytes(trainer: trainer_state.Resumable) -> int:
    """Return the size of a checkpoint's weights, two moments and moving reference, all in fp32."""
    numbers = sum(p.numel() for p in trainer.models.trainable().values())
    return 4 * (4 if trainer.sync_steps else 3) * numbers


def is_of_disk(error: BaseException) -> bool:
    """Whether an error is about the disk, and no fault of the program."""
    return isinstance(error, ValueError) or write_failure(error) is not None
