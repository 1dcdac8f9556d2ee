"""The check, before anything is loaded, that all ranks can do one thing together."""

from __future__ import annotations

import hashlib
import json
import secrets
import socket
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from posttrain.common import distributed
from posttrain.common.environment import versions
from posttrain.common.errors import SettingError
from posttrain.common.files import sha256
from posttrain.model.device import free_memory
from posttrain.runs.config import Config, dump

SAME = {
    "versions": "versions",
    "code": "code",
    "config": "recipes",
    "settings": "settings",
    "inputs": "inputs",
}
"""What must be equal on all ranks, and its name in a message."""
SHARED_WITHIN = 15.0  # seconds; a network file system shows new files late


def preflight(config: Config) -> str:
    """Return one line about the ranks, their hosts and devices; empty for a single process.

    Raise ValueError, on every rank, if versions, code or config differ between ranks, or if the
    folder for the run is not the same on all hosts. A collective.
    """
    return compare({"config": dump(config)}, Path(config.trainer.output_dir), "trainer.output_dir")


def compare(asked: dict[str, Any], folder: Path | None = None, field: str = "output") -> str:
    """Return one line about the ranks, as `preflight`; `asked` has keys of SAME.

    `folder` must be the same on all hosts; errors call it `field`. A collective.
    """
    if distributed.num_ranks() == 1:
        return ""
    reports = distributed.all_gather(report(asked))
    if problem := difference(reports):
        raise ValueError(problem)
    device = torch.device(reports[distributed.rank()]["device"])
    total = torch.ones(1, device=device)
    torch.distributed.all_reduce(total)
    assert int(total) == distributed.num_ranks()
    if folder is not None and len({entry["host"] for entry in reports}) > 1:
        check_shared(folder, [entry["host"] for entry in reports], field)
    return summary(reports)


def check_alike(inputs: dict[str, Any]) -> None:
    """Raise ValueError, on every rank, if what the ranks have read differs. A collective.

    `inputs` are facts about the model and the rows: each machine may read files of its own.
    """
    mine = {"host": socket.gethostname(), "inputs": json.loads(json.dumps(inputs, default=str))}
    if problem := difference(distributed.all_gather(mine)):
        raise ValueError(f"{problem}: give the same files on all machines")


def report(asked: dict[str, Any]) -> dict[str, Any]:
    """Return what this rank has and runs."""
    on_cuda = torch.distributed.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")
    return {
        "host": socket.gethostname(),
        "device": str(device),
        "free": free_memory(device),
        "versions": versions(),
        "code": code_hash(),
        **json.loads(json.dumps(asked, default=str)),
    }


def code_hash() -> str:
    """Return the SHA-256 of posttrain's source files."""
    root = Path(__file__).parents[1]
    files = sorted(root.rglob("*.py"))
    names = [f"{file.relative_to(root)} {sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def difference(reports: list[dict[str, Any]]) -> str | None:
    """Return what differs between ranks that must not, in one line; None if nothing does."""
    for name, what in SAME.items():
        if name not in reports[0]:
            continue
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for rank, entry in enumerate(reports):
            groups[json.dumps(entry[name], sort_keys=True)].append(rank)
        if len(groups) == 1:
            continue
        (_, first), (_, second), *_ = groups.items()
        a, b = reports[first[0]], reports[second[0]]
        where = f"rank {first[0]} ({a['host']}) and rank {second[0]} ({b['host']})"
        if name == "code":
            return f"{where} run different code of posttrain: install the same one on all machines"
        ours, theirs = flat(a[name]), flat(b[name])
        keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
        parts = [f"{key} is {ours.get(key)} and {theirs.get(key)}" for key in keys[:3]]
        more = f", and {len(keys) - 3} more" if len(keys) > 3 else ""
        return f"{where} have different {what}: {'; '.join(parts)}{more}"
    return None


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a nested mapping by dotted name; an empty mapping is one, too."""
    if not isinstance(tree, dict) or not tree:
        return {prefix.removesuffix("."): tree}
    return {k: v for key, part in tree.items() for k, v in flat(part, f"{prefix}{key}.").items()}


def check_shared(output_dir: Path, hosts: list[str], field: str = "trainer.output_dir") -> None:
    """Raise ValueError, on every rank, if a host does not see what rank 0 writes. A collective.

    The file is written into the folder, or the nearest one above it that exists, and removed.
    """
    place = next((p for p in (output_dir, *output_dir.parents) if p.is_dir()), Path())
    name = f".posttrain-{secrets.token_hex(8)}"
    file = Path(distributed.from_rank_0(str(place.resolve() / name)))
    problem = ""
    if distributed.rank() == 0:
        try:
            file.write_text("written by rank 0 to see whether all machines share this folder")
        except OSError as error:
            problem = f"cannot be written to: {error.strerror}"
    if problem := distributed.from_rank_0(problem):
        raise SettingError(field, f"{file.parent} on {hosts[0]} {problem}")
    begun = time.monotonic()
    while not (seen := file.is_file()) and time.monotonic() - begun < SHARED_WITHIN:
        time.sleep(0.2)
    all_seen = distributed.all_gather(seen)
    if distributed.rank() == 0:
        file.unlink()
    blind = sorted({host for host, sees in zip(hosts, all_seen) if not sees})
    if blind:
        raise SettingError(
            field,
            f"{file.parent} on {hosts[0]} is not the same folder on {', '.join(blind)}: name one "
            "on a file system that all machines share",
        )


def summary(reports: list[dict[str, Any]]) -> str:
    """Return ranks by host, with devices and the least memory that is free."""
    hosts: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in reports:
        hosts[entry["host"]].append(entry)
    parts = []
    for host, entries in hosts.items():
        devices = list(dict.fromkeys(entry["device"] for entry in entries))
        shared = f" x {len(entries)}" if len(devices) < len(entries) else ""
        free = min(entry["free"] for entry in entries) / 2**30
        parts.append(f"{host} ({', '.join(devices)}{shared}, {free:.1f} GiB free)")
    return f"{len(reports)} ranks: {', '.join(parts)}"
