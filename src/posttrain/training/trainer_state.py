"""The trainer's tensors in a checkpoint: the optimiser's moments and a reference that moves.

Each rank writes the parts that it holds into one file of `trainer_state/`, in safetensors, and
`index.json` there says which part of which tensor each file has. So no tensor is ever gathered, and
any number of ranks reads what it needs, under any strategy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from posttrain.common import distributed
from posttrain.model.models import Models
from posttrain.model.parts import Part, holders, local, part_of, places
from posttrain.model.tensor_files import TensorFiles
from posttrain.training.offload import empty_state

STATE = "trainer_state.pt"
"""Plain values and small tensors."""
FOLDER, INDEX = "trainer_state", "index.json"
Index = dict[str, dict[str, dict[str, list[int]]]]
"""By tensor and file: the offset and shape of the part of the tensor that the file holds."""


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


def tensors_of(trainer: Resumable) -> dict[str, Tensor]:
    """Return the optimiser's state and a moving reference, by names of a checkpoint."""
    state = trainer.optimizer.state
    tensors = {
        f"optimizer/{name}/{key}": value
        for name, parameter in trainer.models.trainable().items()
        for key, value in state.get(parameter, {}).items()
    }
    if trainer.sync_steps:
        tensors |= {f"reference/{name}": x for name, x in trainer.models.start.items()}
    return tensors


def own_parts(tensors: Mapping[str, Tensor], copied: bool) -> tuple[dict[str, Tensor], Index]:
    """Return the parts that this rank writes, on the CPU, and the index of all. A collective.

    A part that several ranks hold is written by the first. With `copied`, none shares its memory
    with what is trained."""
    rank, mine, index = distributed.rank(), {}, {}
    for name, parts in places(tensors).items():
        chosen = holders(parts)
        index[name] = {
            file_of(holder): {"offset": [*part.offset], "shape": [*part.shape]}
            for holder, part in chosen.items()
        }
        if rank in chosen:
            held = local(tensors[name])
            value = held.cpu()
            is_same = copied and value.data_ptr() == held.data_ptr()
            mine[name] = value.clone() if is_same else value
    return mine, index


def file_of(rank: int) -> str:
    """Return the name of the file of a rank's parts."""
    return f"{rank + 1:05d}-of-{distributed.num_ranks():05d}.safetensors"


def restore(trainer: Resumable, checkpoint: Path) -> None:
    """Read this rank's parts of the tensors of `tensors_of` into a fresh trainer.

    Raises ValueError if the checkpoint lacks a part of one."""
    saved = _Saved(checkpoint / FOLDER)
    state = trainer.optimizer.state
    for name, parameter in trainer.models.trainable().items():
        begin = f"optimizer/{name}/"
        entry: dict[str, Tensor] = {}
        for key in [full.removeprefix(begin) for full in saved.index if full.startswith(begin)]:
            shape = saved.shape(begin + key)
            entry[key] = empty_state(trainer.optimizer, parameter, shape)
            saved.fill(begin + key, entry[key])
        if entry:
            state[parameter] = entry
    for name, tensor in trainer.models.start.items() if trainer.sync_steps else ():
        saved.fill(f"reference/{name}", tensor)


class _Saved:
    """The files of one checkpoint's `trainer_state/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: Index = json.loads((folder / INDEX).read_text())
        self.files: dict[str, TensorFiles] = {}

    def parts(self, name: str) -> dict[str, Part]:
        """Return the parts of a tensor by file."""
        return {
            file: Part(tuple(part["offset"]), tuple(part["shape"]))
            for file, part in self.index.get(name, {}).items()
        }

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a whole tensor."""
        ends = [
            [a + n for a, n in zip(part.offset, part.shape)] for part in self.parts(name).values()
        ]
        return tuple(map(max, zip(*ends)))

    def fill(self, name: str, tensor: Tensor) -> None:
        """Read this rank's part of a tensor into it."""
        mine, target = part_of(tensor), local(tensor)
        missing = target.numel()
        for file, part in self.parts(name).items():
            common = mine.within(part)
            if common.is_empty:
                continue
            if file not in self.files:
                self.files[file] = TensorFiles({})
            self.files[file].places[name] = self.folder / file
            piece = self.files[file].read(name, common.seen_from(part))
            with torch.no_grad():
                target[common.seen_from(mine).box].copy_(piece)
            missing -= piece.numel()
        if missing:
            raise ValueError(f"{self.folder} lacks {missing:,} numbers of {name}")


def read_small(file: Path) -> dict[str, Any]:
    """Return the file of a checkpoint that holds plain values and small tensors, without pickle."""
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state
