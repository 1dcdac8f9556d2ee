"""The device that the network runs on, and the dtype that it computes in."""

from __future__ import annotations

import os
from pathlib import Path

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(name: str) -> torch.device:
    """Return the device of a `model.device`; raise ValueError if torch does not see it."""
    if name != "auto":
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError("model.device is cuda, but torch sees no CUDA device")
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_reason(name: str, device: torch.device) -> str:
    """Return what the device is and why it was chosen for a `model.device`."""
    if device.type == "cpu":
        return "the CPU" + ("" if name == "cpu" else ", since torch sees no CUDA device")
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"


def dtype_reason(name: str, dtype: torch.dtype, device: torch.device) -> str:
    """Return the compute dtype and why it was chosen for a `model.dtype`."""
    native = choose_dtype("auto", device) == torch.bfloat16
    text = str(dtype).removeprefix("torch.")
    if name != "auto":
        emulated = dtype == torch.bfloat16 and not native
        return f"{text}, as model.dtype says" + (", which it emulates slowly" if emulated else "")
    return f"{text}, since it has {'' if native else 'no '}native bfloat16 products"


def use_deterministic() -> None:
    """Make torch refuse operators whose result differs from run to run, for model.deterministic.

    cuBLAS reads its variable at the first product, so call it before."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the compute dtype of a `model.dtype`.

    `auto` is bf16 if the device multiplies it natively, which on a CPU means AMX, else fp32.
    """
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def cast_parameters(network: torch.nn.Module, dtype: torch.dtype, copy: bool = False) -> None:
    """Give the floating-point parameters of a network a dtype; `copy` those that have it too.

    Buffers keep theirs: rounded to bf16, a rotation's frequencies would turn late tokens by
    another angle."""
    for parameter in network.parameters():
        # four bits may be stored as the bytes of another dtype
        if parameter.is_floating_point() and not hasattr(parameter, "quant_state"):
            parameter.data = parameter.data.to(dtype, copy=copy)


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on the device; of a CPU without /proc half of its memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return free[0] if free else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
