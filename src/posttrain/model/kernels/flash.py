"""The flash kernel for packed rows: one call for all segments of a micro-batch, on a CUDA device.

torch's `varlen_attn` differs between versions, and the kernel behind it accepts only some devices,
dtypes and head sizes. `unsuitable` knows them, so that the rest takes another path instead of
failing in the middle of a run.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
MAX_SIZE = 256
"""Largest head size of the kernel; `mha_varlen_fwd` in torch's flash_api.cpp."""


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of products with `x`: autocast's, or its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def unsuitable(
    device: torch.device, dtype: torch.dtype, size: int, value_size: int | None = None
) -> str | None:
    """Return why the kernel cannot run, or None if it can.

    `size` is the head size of queries and keys, `value_size` that of the values if it differs."""
    if device.type != "cuda":
        return f"the flash kernel needs a CUDA device, not {device.type}"
    if dtype not in HALF:
        return f"the flash kernel needs bfloat16, not {str(dtype).removeprefix('torch.')}"
    if value_size not in (None, size):
        return f"the flash kernel needs values as wide as keys, not {value_size} and {size}"
    if size % 8 or size > MAX_SIZE:
        return f"the flash kernel needs a head size of 8, 16, ... {MAX_SIZE}, not {size}"
    return _device_lacks(device, size) or _torch_lacks()


def _device_lacks(device: torch.device, size: int) -> str | None:
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"the flash kernel needs compute capability 8.0, this GPU has {major}.{minor}"
    # too little shared memory for the backward pass; sdp_utils.cpp, check_..._gt192_...
    if 192 < size <= 224 and ((8, 6) <= (major, minor) <= (8, 9) or major == 12):
        return f"the flash kernel has no backward pass for head size {size} on this GPU"
    return None


def _torch_lacks() -> str | None:
    needed = {"scale", "window_size"}
    if not needed <= _keywords():
        return f"torch {torch.__version__} has no variable-length attention with {sorted(needed)}"
    return None


@functools.cache
def _keywords() -> frozenset[str]:
    """Return the parameters of this torch's `varlen_attn`; none if there is no such function."""
    try:
        from torch.nn.attention import varlen  # torch >= 2.10
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen.varlen_attn).parameters)


def varlen(
    query: Tensor,  # [T, H, D]
    key: Tensor,  # [L, H_kv, D]
    value: Tensor,  # [L, H_kv, D]
    cu_queries: Tensor,  # [N+1] int32
    cu_keys: Tensor,  # [N+1] int32
    longest_query: int,
    longest_key: int,
    *,
    scale: float | None,
    sliding_window: int | None,
) -> Tensor:
    """Return [T, H, D]: each segment's queries attend causally to its keys.

    Aligned at the last key of each segment, so that a query sees the prefix and the keys before it.
    """
    from torch.nn.attention.varlen import varlen_attn  # torch >= 2.10

    options: dict[str, Any] = {}
    if "enable_gqa" in _keywords():  # torch 2.11 groups the heads unasked and rejects the keyword
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    out = varlen_attn(
        query,
        key,
        value,
        cu_queries,
        cu_keys,
        longest_query,
        longest_key,
        scale=scale,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        **options,
    )
    assert isinstance(out, Tensor)
    return out
