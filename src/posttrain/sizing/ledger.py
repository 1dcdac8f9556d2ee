"""Tensors without contents, and a ledger of their bytes.

Inside a `Ledger`, the project's own code runs on tensors of the true device type, dtype and shape
whose memory is reserved but never touched: an operator's result is made from its meta kernel, and
nothing is computed. Tensors of indices, masks and lengths stay real, since shapes depend on them.
So a model of 70B parameters takes no memory here, and what is counted is the real code path.

Since tensors are reserved by the allocator that a run on a CPU would have, their addresses show
what it could not reuse: memory that a process has touched once stays resident.
"""

from __future__ import annotations

import mmap
import sys
import weakref
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

PAGE = 4096
LARGE = 2**32  # bytes of a tensor above which it is reserved without the allocator
NORESERVE = 0x4000 if sys.platform == "linux" else 0  # MAP_NORESERVE, which Python has from 3.13 on
SMALL = 2**14  # bytes up to which a factory's tensor is real
WEIGHTS, GATHERED, CAST = "weights", "gathered layers", "weights in compute dtype"
GRADIENTS, LOGITS, ACTIVATIONS = "gradients", "logits", "activations"
REAL = ("_fused_sdp_choice", "lift_fresh", "set_", "resize_")
"""Operators that read shapes alone."""


KINDS = {
    "all-reduce": ("allreduce", "all_reduce"),
    "all-gather": ("allgather", "all_gather"),
    "reduce-scatter": ("reduce_scatter",),
    "all-to-all": ("alltoall", "all_to_all"),
}
"""Collectives by the names of their operators."""


@dataclass(frozen=True)
class Exchange:
    """A kind of collective in a kind of group."""

    kind: str
    ranks: int
    apart: bool
    """Whether the group's ranks are on several machines."""


class Ledger(TorchDispatchMode):
    """Counts the bytes of tensors by part, the peak of their sum, and collectives by kind."""

    def __init__(self, ranks_per_machine: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ranks_per_machine = ranks_per_machine
        self.vocab = 0
        """Width of the logits on this rank, by which they are known."""
        self.touched = Spans()
        """Addresses that tensors have ever had."""
        self.part = ACTIVATIONS
        """The part that new tensors belong to."""
        self.products: set[Any] = set()
        """Shapes of products by oneDNN, for each of which it keeps a kernel."""
        self.live: Counter[str] = Counter()
        self.total = 0
        self.phase = ""
        self.peaks: dict[str, tuple[int, dict[str, int]]] = {}
        """The most bytes in each phase, and by part at that moment."""
        self.traffic: Counter[Exchange] = Counter()
        """Bytes of the whole tensors in collectives."""
        self.largest: Counter[str] = Counter()
        """Bytes of the largest tensor in a collective, by its kind."""
        self._entries: dict[int, tuple[int, str, Any]] = {}  # by address of the storage
        self._hollow: set[int] = set()  # addresses of storages without contents
        self._known: dict[Any, Any] = {}  # meta results by operator and arguments

    def enter(self, phase: str) -> None:
        """Begin a phase, or another part of one."""
        self.phase = phase
        self._note()

    def _note(self) -> None:
        if self.total > self.peaks.get(self.phase, (-1, {}))[0]:
            self.peaks[self.phase] = self.total, {k: v for k, v in self.live.items() if v}

    @contextmanager
    def counting(self, part: str) -> Iterator[None]:
        """Let new tensors belong to a part, inside a with block."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def belongs(self, tensor: Tensor, part: str) -> None:
        """Move a tensor's storage to another part."""
        key = tensor.untyped_storage()._cdata
        if key in self._entries:
            size, before, watch = self._entries[key]
            self._entries[key] = size, part, watch
            self.live[before] -= size
            self.live[part] += size

    def part_of(self, tensor: Tensor) -> str:
        """Return the part that a tensor's storage belongs to."""
        entry = self._entries.get(tensor.untyped_storage()._cdata)
        return "" if entry is None else entry[1]

    def resized(self, storage: torch.UntypedStorage) -> None:
        """Take note of a storage's new size: FSDP frees and allocates gathered layers so."""
        if storage._cdata in self._entries:
            size, part, watch = self._entries[storage._cdata]
            self._entries[storage._cdata] = storage.nbytes(), part, watch
            self.touched.add(storage.data_ptr(), storage.nbytes())
            self._add(part, storage.nbytes() - size)

    def _add(self, part: str, size: int) -> None:
        self.live[part] += size
        self.total += size
        self._note()

    def _enter(self, tensor: Tensor, part: str, hollow: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._entries:
            return
        watch = weakref.ref(storage, lambda _: self._leave(key))
        self._entries[key] = storage.nbytes(), part, watch
        self.touched.add(storage.data_ptr(), storage.nbytes())
        if hollow:
            self._hollow.add(key)
        self._add(part, storage.nbytes())

    def _leave(self, key: int) -> None:
        size, part, _ = self._entries.pop(key)
        self._hollow.discard(key)
        self._add(part, -size)

    def is_hollow(self, tensor: Tensor) -> bool:
        """Whether a tensor has no contents."""
        return tensor.untyped_storage()._cdata in self._hollow

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        from torch.distributed.tensor import DTensor

        kwargs = kwargs or {}
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # a DTensor's operators come back for its local tensors
        if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
            return func(*args, **kwargs)  # DTensor finds shapes on fake tensors
        tensors = _tensors((args, kwargs))
        if any(t.is_meta for t in tensors) or str(kwargs.get("device", "")) == "meta":
            return func(*args, **kwargs)
        if func.namespace in ("c10d", "_c10d_functional"):
            return self._collective(func, args, kwargs)
        name = func._schema.name.partition("::")[2]
        hollow = any(map(self.is_hollow, tensors))
        if func.is_view or name in REAL:
            return func(*args, **kwargs)
        if name == "_local_scalar_dense" and hollow:
            return (args[0].dtype.is_floating_point and 1.0) or 1
        written = _written(func, args, kwargs)
        if written is not None and hollow:
            for tensor in _tensors(written):
                self._enter(tensor, self.part, True)
                self._hollow.add(tensor.untyped_storage()._cdata)
            if func.namespace == "fsdp":
                for tensor in _tensors(written):
                    self.belongs(tensor, GATHERED)
            return _returned(func, written)
        if not hollow and (tensors or not _is_large(func, args, kwargs)):
            out = func(*args, **kwargs)
            large = [t for t in _tensors(out) if t.dtype.is_floating_point]
            for tensor in _tensors(out):
                empty = not tensors and tensor.nbytes > SMALL and any(t is tensor for t in large)
                self._enter(tensor, self._part_for(func, tensors, tensor), empty)
            return out
        if name == "_reorder_linear_weight":
            out = _reserved(args[0])  # oneDNN's layout, of the same size
        else:
            out = self._imagine(func, args, kwargs)
        if name == "isnan" or (name == "ne" and args[0] is args[1]):
            out.zero_()
        for tensor in _tensors(out):
            empty = tensor.dtype.is_floating_point
            self._enter(tensor, self._part_for(func, tensors, tensor), empty)
        return out

    def _part_for(self, func: Any, inputs: list[Tensor], out: Tensor) -> str:
        if func.namespace == "fsdp":
            return GATHERED
        if self.part != ACTIVATIONS:
            return self.part
        if func._schema.name == "aten::_to_copy" and self.part_of(inputs[0]) in (WEIGHTS, GATHERED):
            return CAST
        return LOGITS if out.dim() == 2 and out.shape[1] == self.vocab else ACTIVATIONS

    def _imagine(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return tensors of the shapes that an operator would return."""
        if func._schema.name == "aten::index":
            args = args[0], _without_masks(args[1])
        key = _key(func, args, kwargs)
        if func.namespace == "mkldnn":
            self.products.add(key)
        if key not in self._known:
            meta_args, meta_kwargs = tree_map_only(Tensor, _as_meta, (args, kwargs))
            if "device" in meta_kwargs:
                meta_kwargs = meta_kwargs | {"device": torch.device("meta")}
            self._known[key] = func(*meta_args, **meta_kwargs)
        return tree_map_only(Tensor, _reserved, self._known[key])

    def _collective(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return what a collective returns, with nothing exchanged, and note its bytes."""
        name = func._schema.name.partition("::")[2].strip("_")
        if name in ("wait_tensor", "wrap_tensor_autograd"):
            return args[0]
        tensors = _tensors(args[:2])
        ranks = _ranks_of(args)
        kind = next((kind for kind, names in KINDS.items() if name.startswith(names)), name)
        size = max((t.nbytes for t in tensors), default=0)
        if name.startswith("all_gather_into"):
            size *= len(ranks)
        self.largest[kind] = max(self.largest[kind], size)
        apart = ranks[0] // self.ranks_per_machine != ranks[-1] // self.ranks_per_machine
        self.traffic[Exchange(kind, len(ranks), apart)] += size
        if func.namespace == "_c10d_functional":
            out = self._imagine(func, args, kwargs)
            for tensor in _tensors(out):
                self._enter(tensor, self.part, True)
            return out
        from torch._C._distributed_c10d import FakeWork

        if "reduce_scatter" in name:
            for tensor in _tensors(args[0]):
                self.belongs(tensor, GRADIENTS)
        elif "allgather" in name:
            for tensor in tensors:
                self.belongs(tensor, GATHERED)
        work = FakeWork().boxed()
        returns = len(func._schema.returns)
        return work if returns == 1 else (args[0], work)


def _ranks_of(args: Any) -> list[int]:
    """Return the ranks of a collective's group."""
    c10d: Any = torch._C._distributed_c10d

    for value in reversed(args):
        if isinstance(value, str) and value not in ("sum", "max", "min", "avg"):
            return torch.distributed.get_process_group_ranks(c10d._resolve_process_group(value))
        if isinstance(value, torch.ScriptObject) and "ProcessGroup" in str(value._type()):
            return torch.distributed.get_process_group_ranks(c10d.ProcessGroup.unbox(value))
    return [0]


def _without_masks(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Return indices with the places of each mask, which is real, instead of it."""
    found: list[Tensor | None] = []
    for index in indices:
        is_mask = index is not None and index.dtype == torch.bool
        found += index.nonzero(as_tuple=True) if is_mask else [index]  # type: ignore[union-attr]
    return found


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, list | tuple):
        return [t for part in tree for t in _tensors(part)]
    if isinstance(tree, dict):
        return [t for part in tree.values() for t in _tensors(part)]
    return []


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[Any] | None:
    """Return the arguments that an operator writes; None if it writes none."""
    found = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            found.append(value)
    return found or None


def _returned(func: Any, written: list[Any]) -> Any:
    count = len(func._schema.returns)
    if count == 0:
        return None
    return written[0] if count == 1 else tuple(written[:count])


def _is_large(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a factory would fill a large tensor of numbers; empty ones touch no memory."""
    takes_device = any(argument.name == "device" for argument in func._schema.arguments)
    if not takes_device or "empty" in func._schema.name:
        return False
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    if not dtype.is_floating_point:
        return False
    out = func(*args, **(kwargs | {"device": torch.device("meta")}))
    return any(t.nbytes > SMALL for t in _tensors(out))


def _key(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return tuple(value.shape), value.stride(), value.dtype
        if isinstance(value, list | tuple):
            return tuple(map(plain, value))
        return value.hex() if isinstance(value, float) else value

    return func, plain(args), tuple((name, plain(value)) for name, value in kwargs.items())


def _as_meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _reserved(meta: Tensor) -> Tensor:
    """Return a tensor without contents; of integers 0 and of truth values True, which are read."""
    if meta.nbytes > LARGE and meta.dtype.is_floating_point and hasattr(mmap, "MAP_PRIVATE"):
        # the kernel refuses one reservation of more than the machine has, unless told not to count
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
        space = torch.frombuffer(mmap.mmap(-1, meta.nbytes, flags=flags), dtype=meta.dtype)
        return space.as_strided(meta.shape, meta.stride())
    tensor = torch.empty_strided(meta.shape, meta.stride(), dtype=meta.dtype)
    return tensor if meta.dtype.is_floating_point else tensor.fill_(meta.dtype == torch.bool)


class Spans:
    """Addresses as disjoint spans of whole pages."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, address: int, size: int) -> None:
        """Add the pages of `size` bytes."""
        if size == 0:
            return
        start, end = address // PAGE * PAGE, -(-(address + size) // PAGE) * PAGE
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last], self._ends[first:last] = [start], [end]

    @property
    def total(self) -> int:
        """Bytes of all pages."""
        return sum(self._ends) - sum(self._starts)
