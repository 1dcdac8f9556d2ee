"""Settings of the process, and the versions of the libraries that it runs with."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
KERNELS = 128  # of oneDNN that are kept; each is for one shape and takes 0.6 MiB


def make_products_reproducible() -> None:
    """Make MKL return the same bits for a product wherever its operands are in memory.

    By default the kernel that MKL picks for a small fp32 product depends on the alignment of the
    operands, so equal rows in two places of a batch differ in their last bits (seen with AVX2).
    MKL reads the variable at its first product, so this must come before that. A value that the
    user has set is kept. AUTO allows the processor's fastest instructions.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def bound_kernels() -> None:
    """Keep few of oneDNN's kernels, which are built for every new shape of a product.

    By default oneDNN and torch each keep 1,024. A server whose batches have ever new shapes takes
    500 MiB for them within minutes. Training meets its shapes again and is 4 % slower with 128, so
    this is for the server alone. Both read their variable at the first product; a value that the
    user has set is kept.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KERNELS))


def tune_allocator() -> None:
    """Make glibc reuse freed memory instead of returning it to the kernel.

    By default every tensor above 32 MiB is mapped, zeroed and unmapped again in each step: 1,127
    against 1,363 tokens/s in benchmarks/sft.py. A setting in the environment is kept.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    libc.mallopt(M_MMAP_THRESHOLD, 2**30)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def return_free_memory() -> None:
    """Give freed memory back to the kernel, at the end of a phase that is not repeated.

    Later phases would not use all of it again, since it lies in pieces."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def versions() -> dict[str, str]:
    """Return the versions that a run's numbers depend on."""
    from importlib.metadata import version  # for start-up time

    names = ("posttrain", "torch", "transformers", "peft", "tokenizers")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
