"""The trainer's tensors in a checkpoint, put together from its shards without the program."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


def trainer_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of `trainer_state/`, whole, by its name there."""
    folder = checkpoint / "trainer_state"
    index = json.loads((folder / "index.json").read_text())
    files = {file.name: load_file(file) for file in folder.glob("*.safetensors")}
    found = {}
    for name, parts in index.items():
        ends = [[a + n for a, n in zip(p["offset"], p["shape"])] for p in parts.values()]
        shape = [max(sizes) for sizes in zip(*ends)]
        dtype = files[next(iter(parts))][name].dtype
        tensor = torch.full(shape, 77, dtype=dtype)
        for file, part in parts.items():
            box = tuple(slice(a, a + n) for a, n in zip(part["offset"], part["shape"]))
            tensor[box] = files[file][name]
        found[name] = tensor
    return found


def moments(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The optimiser's state by parameter and key, such as `model.norm.weight/exp_avg`."""
    tensors = trainer_tensors(checkpoint)
    start = "optimizer/"
    return {n.removeprefix(start): x for n, x in tensors.items() if n.startswith(start)}
