"""A CUDA device made of CPU memory: a machine without a GPU runs the code paths of one.

    PYTHONPATH=tests/helpers python -m pytest -p pretend_cuda tests/cuda

As a pytest plugin it installs itself before anything imports torch. From then on
`torch.device("cuda")` works in a CPU build of torch: tensors have the device `cuda:0`, autograd
runs on the device's own thread, autocast uses CUDA's lists of operators, an operation on tensors of
two devices raises, and attention runs with the checks of the CUDA kernels (pretend_kernels.py).
Values are computed by the CPU, so they can be compared with a run on "cpu".

Several ranks: a process has as many devices as LOCAL_WORLD_SIZE says, and a thread's current one is
the first until it chooses another. torch.distributed has a backend "nccl" that refuses what NCCL
refuses (pretend_nccl.py); FSDP2, DTensor and groups split off others run on it. A process forked
after `pretend_preload` was imported is such a rank.

`pretend_cuda.cpp` and `pretend_nccl.cpp` do it, in 400 lines of C++: g++ compiles them in half a
minute, once per version of torch. The library changes torch for the whole process, so such tests
have a process of their own.

What it cannot show, since there is no GPU: cuBLAS' rounding, which depends on the batch; races
between streams, since every stream is always done; memory; NCCL's order of sums, speed, timeouts
and deadlocks; Triton and torch.compile; CUDA graphs; whether a copy from pinned memory was awaited;
cuDNN; generators of a device, whose states are the CPU's. Kernels are counted as operators
(`device_counts.py`). An operator that CUDA fuses and a CPU does not must be added to
pretend_kernels.py by hand. Tried with torch 2.13.
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

HERE = Path(__file__).parent
SOURCES = [HERE / name for name in ("pretend_cuda.cpp", "pretend_nccl.cpp")]
HEADER = HERE / "pretend_cuda.h"
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
    read = b"".join(f.read_bytes() for f in (*SOURCES, HEADER, home / "version.py"))
    library = _temporary(f"{hashlib.sha256(read).hexdigest()[:16]}.so")
    if not library.is_file():
        includes = [f"-I{home}/include", f"-I{home}/include/torch/csrc/api/include"]
        flags = ["-O1", "-std=c++20", "-fPIC", "-w", "-DUSE_DISTRIBUTED"]
        objects = [_temporary(f"{os.getpid()}_{source.stem}.o") for source in SOURCES]
        compilers = [
            subprocess.Popen(["g++", *flags, *includes, "-c", str(source), "-o", str(o)])
            for source, o in zip(SOURCES, objects, strict=True)
        ]
        assert [c.wait() for c in compilers] == [0] * len(compilers), "g++ failed"
        unfinished = library.with_suffix(f".{os.getpid()}")
        links = [f"-L{home}/lib", "-lc10", "-ltorch_cpu", "-ltorch", "-o", str(unfinished)]
        subprocess.run(["g++", "-shared", *map(str, objects), *links], check=True)
        os.replace(unfinished, library)  # another process may have built it meanwhile
        for o in objects:
            o.unlink()
    return library


def _temporary(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"pretend_cuda_{os.getuid()}_{name}"


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
    device = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    import torch

    _answer_for_cuda(torch)
    _answer_for_devices(torch, device)
    plain = torch.Tensor.__deepcopy__

    def deepcopy(tensor, memo):  # Python cannot copy a storage of a device it does not know
        if not tensor.is_cuda or not tensor.is_leaf or id(tensor) in memo:
            return plain(tensor, memo)
        memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        return memo[id(tensor)]

    torch.Tensor.__deepcopy__ = deepcopy
    torch.UntypedStorage.resize_ = _resize_of(torch, device)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device) makes it, then moves it
    torch.is_pretended = True
    from pretend_kernels import register
    from pretend_nccl import offer

    register()
    offer()


def _resize_of(torch, library: ctypes.CDLL):
    """A storage's `resize_`, by which FSDP frees gathered parameters and allocates them again."""
    resize, plain = library.pretend_resize, torch.UntypedStorage.resize_
    resize.argtypes = [ctypes.c_void_p, ctypes.c_int64]

    def resize_(storage, size: int):
        if storage.device.type == "cuda":
            resize(storage._cdata, size)
            return storage
        return plain(storage, size)

    return resize_


def _answer_for_cuda(torch) -> None:
    """Answer what torch asks of CUDA in Python: the figures are those of an H100."""
    properties = types.SimpleNamespace(
        name="pretended", major=9, minor=0, total_memory=80 * 2**30, multi_processor_count=132
    )
    answers = {
        "_lazy_init": None,
        "is_available": True,
        "is_initialized": True,
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
    # asked anew each time, so that a test can pretend an older GPU
    torch.cuda.is_bf16_supported = lambda including_emulation=True: (
        including_emulation or torch.cuda.get_device_capability() >= (8, 0)
    )


def _answer_for_devices(torch, library: ctypes.CDLL) -> None:
    """Devices, of which each thread has a current one, and streams that are always done."""

    def count() -> int:
        return library.pretend_device_count()

    def current() -> int:
        return library.pretend_device()

    def index(device) -> int:
        if isinstance(device, int) or device is None:
            return -1 if device is None else device
        found = torch.device(device).index
        return -1 if found is None else found

    def set_device(device) -> None:
        if index(device) >= count():
            raise RuntimeError("CUDA error: invalid device ordinal")
        library.pretend_set_device(index(device))

    @contextlib.contextmanager
    def within(device):
        before = current()
        set_device(device)
        try:
            yield
        finally:
            library.pretend_set_device(before)

    class Stream(torch.Stream):
        def __new__(cls, device=None, priority=0, **keys):
            at = current() if index(device) < 0 else index(device)
            return super().__new__(cls, device=torch.device("cuda", at), priority=priority)

    class Event(torch.Event):
        def __new__(cls, *args, **keys):
            return super().__new__(cls, device="cuda")

        def elapsed_time(self, end) -> float:
            return 0.0

    torch.cuda.device_count, torch.cuda.current_device = count, current
    torch.cuda.set_device, torch.cuda.device = set_device, within
    torch.cuda.Stream, torch.cuda.Event = Stream, Event
    torch.cuda.current_stream = torch.cuda.default_stream = lambda device=None: Stream(device)
    torch.cuda.stream = lambda stream: contextlib.nullcontext()
    torch.cuda.set_stream = lambda stream: None


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    install()
