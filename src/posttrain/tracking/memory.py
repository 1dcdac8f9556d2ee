"""The memory that a run takes, by step."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from posttrain.common.lazy import torch

GIB = 2**30
STATM = Path("/proc/self/statm")


def memory_used() -> dict[str, float]:
    """Return the GiB that this process takes.

    `memory/resident`: of the CPU's memory, now (without /proc, the most so far). On a GPU also
    `memory/peak`: the most that tensors took since the last call, and `memory/reserved`: the most
    that torch has taken from the GPU for them.
    """
    found = {"memory/resident": resident() / GIB}
    if torch.cuda.is_initialized():
        found["memory/peak"] = torch.cuda.max_memory_allocated() / GIB
        found["memory/reserved"] = torch.cuda.max_memory_reserved() / GIB
        torch.cuda.reset_peak_memory_stats()
    return found


def resident() -> int:
    """Return the bytes of the CPU's memory that this process takes."""
    if STATM.is_file():
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_words(metrics: dict[str, float]) -> str:
    """Return the memory of a step for the console: the GPU's if the run is on one."""
    size = metrics.get("memory/peak", metrics["memory/resident"])
    return f"memory {size:.3g} GiB"
