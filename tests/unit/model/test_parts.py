"""Tensors on a mesh of ranks, of any placement: put together, and read in parts."""

from __future__ import annotations

from pathlib import Path

import torch
from rank_calls import on_ranks
from safetensors.torch import save_file
from torch import nn

from posttrain.common import distributed
from posttrain.model.parts import gather, local, part_of, places
from posttrain.model.tensor_files import TensorFiles


def tensors() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Tensors as this rank holds them, and whole: rows, columns, boxes, copies, FSDP over TP."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "tensor"))
    line = init_device_mesh("cpu", (4,))
    held, full = {}, {}
    cases = {
        "rows": (line, [Shard(0)]),
        "boxes": (mesh, [Shard(1), Shard(0)]),
        "copies": (mesh, [Replicate(), Shard(0)]),
        "group": (mesh["tensor"], [Shard(1)]),
        "uneven": (line, [Shard(0)]),
    }
    for name, (over, how) in cases.items():
        full[name] = torch.randn(5 if name == "uneven" else 8, 6, 2)
        held[name] = distribute_tensor(full[name].clone(), over, how)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6))
    full |= {name: p.detach().clone() for name, p in model.named_parameters()}
    parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
    fully_shard(model, mesh=mesh["shard"])
    held |= dict(model.named_parameters())
    full["plain"] = torch.randn(3)
    held["plain"] = full["plain"].clone()
    full["number"] = torch.tensor(7.0)
    held["number"] = full["number"].clone()
    return held, full


def put_together(folder: Path) -> None:
    held, full = tensors()
    where = places(held)
    for name, tensor in held.items():
        assert torch.equal(local(tensor), full[name][part_of(tensor).box]), name
        for owner in (0, 3):
            found = gather(tensor, where[name], owner)
            assert (found is not None) == (distributed.rank() == owner)
            assert found is None or torch.equal(found, full[name]), name
    file = folder / f"{distributed.rank()}.safetensors"
    save_file({name: x.to(torch.bfloat16) for name, x in full.items()}, file)
    files = TensorFiles(dict.fromkeys(full, file))
    for name, tensor in held.items():
        with torch.no_grad():
            local(tensor).fill_(77)
        files.fill(name, tensor)
        expected = full[name].to(torch.bfloat16).float()[part_of(tensor).box]
        assert torch.equal(local(tensor), expected), name
    kinds = {type(p).__name__ for x in held.values() for p in getattr(x, "placements", ())}
    assert "_StridedShard" in kinds


def test_parts_of_any_placement(tmp_path):
    on_ranks(4, tmp_path, put_together, tmp_path)
