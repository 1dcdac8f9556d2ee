"""A CUDA device made of CPU memory: a machine without a GPU runs the code paths of one.

    PYTHONPATH=tests/helpers python -m pytest -p pretend_cuda tests/cuda

As a pytest plugin it installs itself before anything imports torch. From then on
`torch.device("cuda")` works in a CPU build of torch: tensors have the device `cuda:0`, autograd
runs on the device's own thread, autocast uses CUDA's lists of operators, an operation on tensors of
two devices raises, and attention runs with the checks of the CUDA kernels (pretend_kernels.py).
Values are computed by the CPU, so they can be compared with a run on "cpu".

`pretend_cuda.cpp` does it, in 200 lines of C++: g++ compiles them in about 15 seconds, once per
version of torch. The library changes torch for the whole process, so such tests have a process of
their own.

What it cannot show, since there is no GPU: cuBLAS' rounding, which depends on the batch; races
between streams; memory; NCCL; Triton and torch.compile; CUDA graphs; pinned memory; cuDNN. Kernels
are counted as operators (`device_counts.py`). An operator that CUDA fuses and a CPU does not must
be added to pretend_kernels.py by hand. Tried with torch 2.13.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_suffix(".cpp")
LIBRARIES = ("libgomp.so.1", "libc10.so", "libtorch_cpu.so", "libtorch.so")


def missing() -> str | None:
    """What this machine lacks for the pretended device, or None."""
    if shutil.which("g++") is None:
        return "needs g++"
    version = (_torch_home() / "version.py").read_text()
    return None if "cuda: Optional[str] = None" in version else "needs a CPU build of torch"


def _torch_home() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def build() -> Path:
    """The compiled library, kept in the folder for temporary files."""
    home = _torch_home()
    key = hashlib.sha256(SOURCE.read_bytes() + (home / "version.py").read_bytes()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"pretend_cuda_{os.getuid()}_{key}.so"
    if not library.is_file():
        unfinished = library.with_suffix(f".{os.getpid()}")
        includes = [f"-I{home}/include", f"-I{home}/include/torch/csrc/api/include"]
        links = [f"-L{home}/lib", "-lc10", "-ltorch_cpu", "-ltorch"]
        flags = ["-O1", "-std=c++20", "-shared", "-fPIC", "-w"]
        subprocess.run(
            ["g++", *flags, *includes, str(SOURCE), "-o", str(unfinished), *links], check=True
        )
        os.replace(unfinished, library)  # another process may have built it meanwhile
    return library


def installed() -> bool:
    return getattr(sys.modules.get("torch"), "is_pretended", False)


def only_here() -> None:
    """Skip the calling module's tests in a process without the pretended device."""
    if not installed():
        reason = "runs in a process of its own, see test_on_a_pretended_gpu.py"
        pytest.skip(reason, allow_module_level=True)


def install() -> None:
    """Make torch, which must not be imported yet, have a CUDA device."""
    assert "torch" not in sys.modules, "torch asks for a device only once, when it is imported"
    # PEFT imports it, and it binds its CUDA library, which a machine without a GPU does not have
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    library, home = build(), _torch_home() / "lib"
    for name in LIBRARIES:
        if (home / name).exists():
            ctypes.CDLL(str(home / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    import torch

    _answer_for_cuda(torch)
    plain = torch.Tensor.__deepcopy__

    def deepcopy(tensor, memo):  # Python cannot copy a storage of a device it does not know
        if not tensor.is_cuda or not tensor.is_leaf or id(tensor) in memo:
            return plain(tensor, memo)
        memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        return memo[id(tensor)]

    torch.Tensor.__deepcopy__ = deepcopy
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device) makes it, then moves it
    torch.is_pretended = True
    from pretend_kernels import register

    register()


def _answer_for_cuda(torch) -> None:
    """Answer what torch asks of CUDA in Python: the figures are those of an H100."""
    properties = types.SimpleNamespace(
        name="pretended", major=9, minor=0, total_memory=80 * 2**30, multi_processor_count=132
    )
    answers = {
        "_lazy_init": None,
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "synchronize": None,
        "empty_cache": None,
        "ipc_collect": None,
        "get_device_name": "pretended",
        "get_device_capability": (9, 0),
        "get_device_properties": properties,
        "mem_get_info": (70 * 2**30, 80 * 2**30),
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "reset_peak_memory_stats": None,
        "is_current_stream_capturing": False,
        "set_rng_state": None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, _answer=answer, **keys: _answer)
    torch.cuda.get_rng_state = lambda *args: torch.get_rng_state()
    torch.cuda.device = lambda *args: contextlib.nullcontext()
    # asked anew each time, so that a test can pretend an older GPU
    torch.cuda.is_bf16_supported = lambda including_emulation=True: (
        including_emulation or torch.cuda.get_device_capability() >= (8, 0)
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    install()
