"""Count what a GPU would be asked to do: kernels, waits of the host by source line, products.

with Watch() as watch:
    ...
watch.kernels, watch.waits, watch.products
"""

from __future__ import annotations

import collections
import sys
import threading

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

# kernels that one operator launches, if more than one: counted by hand in CUDA's sources
LAUNCHES = {
    "logsumexp": 6,
    "sort": 4,
    "argsort": 4,
    "_unique2": 6,
    "nonzero": 3,
    "isin": 2,
    "embedding_dense_backward": 6,
    "_varlen_attn_backward": 3,
    "attention_backward": 3,
    "_fused_rms_norm_backward": 2,
    "repeat_interleave": 2,
    "index_put_": 2,
    "bincount": 2,
}
FREE = frozenset(
    (
        "empty",
        "empty_strided",
        "empty_like",
        "new_empty",
        "new_empty_strided",
        "detach",
        "alias",
        "lift_fresh",
        "lift_fresh_copy",
        "_unsafe_view",
        "is_same_size",
        "_fused_sdp_choice",
    )
)
COPIES = ("copy_", "_to_copy")
WAITS = frozenset(
    (
        "nonzero",
        "masked_select",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "bincount",
        "equal",
    )
)


class Watch(TorchDispatchMode):
    """The counts of one block, in all threads that it starts."""

    def __init__(self, parent: Watch | None = None) -> None:
        super().__init__()
        own = parent is None
        self.kernels = collections.Counter() if own else parent.kernels  # by operator
        self.waits = collections.Counter() if own else parent.waits  # by (kind, source line)
        self.products = collections.Counter() if own else parent.products  # FLOP by dtype
        self.outermost = own

    def __enter__(self) -> Watch:
        if self.outermost:
            self.run = run = threading.Thread.run

            def watched(thread):  # a mode belongs to a thread
                with Watch(self):
                    run(thread)

            threading.Thread.run = watched
        super().__enter__()
        return self

    def __exit__(self, *args):
        if self.outermost:
            threading.Thread.run = self.run
        return super().__exit__(*args)

    @property
    def num_kernels(self) -> int:
        return sum(self.kernels.values())

    @property
    def num_waits(self) -> int:
        return sum(self.waits.values())

    @property
    def fp32_share(self) -> float:
        return self.products["float32"] / (sum(self.products.values()) or 1)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
        made = [x for x in tree_iter(result) if isinstance(x, torch.Tensor)]
        if any(x.is_cuda for x in (*given, *made)):
            self.count(func, args, kwargs, given, made)
        return result

    def count(self, func, args, kwargs, given, made) -> None:
        name = func._schema.name.split("::")[1]
        if kind := wait(name, args, kwargs, given, made):
            self.waits[kind, source_line()] += 1
        between = name in COPIES and len({x.device for x in (*given, *made)}) > 1
        # x[rows] += y copies the result onto itself, which copy_ leaves at once
        same = name == "copy_" and given[0].data_ptr() == given[1].data_ptr()
        if name in FREE or func.is_view or between or same:
            return
        self.kernels[name] += LAUNCHES.get(name, 1)
        if func._overloadpacket in flop_registry:
            out = made[0] if len(made) == 1 else tuple(made)
            dtype = next(x.dtype for x in given if x.is_floating_point())
            flop = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
            self.products[str(dtype).removeprefix("torch.")] += flop
        if name in ("attention", "attention_backward"):
            query, key, causal = args[-6], args[-5], args[-2]
            flop = 4 * query.numel() * key.shape[-2] * (2.5 if "backward" in name else 1)
            dtype = str(query.dtype).removeprefix("torch.")
            self.products[dtype] += int(flop / (2 if causal else 1))


def wait(name: str, args, kwargs, given, made) -> str:
    """What of an operator makes the host wait for the device, or ''."""
    if name == "_local_scalar_dense":
        return "item"
    if name in COPIES and len({x.device for x in (*given, *made)}) > 1:
        if kwargs.get("non_blocking"):
            return ""
        return "copy to the device" if made[0].is_cuda else "copy to the host"
    if name in WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        return name
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        places = [x for x in args[1] if x is not None]
        if any(not x.is_cuda and x.dim() > 0 for x in places):
            return "index from the host"
        fills = name != "index" and len(places) == 1 and args[2].numel() == 1
        if any(x.dtype in (torch.bool, torch.uint8) for x in places) and not fills:
            return "boolean index"
    return ""


def source_line() -> str:
    """The innermost line of posttrain that is running."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/src/posttrain/" in file:
            return f"{file.split('/src/posttrain/')[-1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "backward"
