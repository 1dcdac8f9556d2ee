"""Attention windows, made short for a probe.

A probe of a window at its edge needs rows longer than it. Real windows have thousands of tokens, so
for the probe they are shortened, in transformers' pass and in ours: whether a layer hands its
window on, and which keys the window holds, does not depend on its length.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

SHORT = 64
"""Windows up to this length are probed as they are."""
PROBED = 24
"""Length of the others while they are probed; rows of a probe are longer."""
NAMES = ("sliding_window", "sliding_window_size", "attention_chunk_size", "window_size")
"""Names of windows in configs and layers. Not those by which a layer chooses its keys (Doge)."""


def longest(config: object) -> int:
    """Return the longest window that a probe of a config has, 0 if there is none."""
    lengths = [n for name in NAMES if type(n := getattr(config, name, None)) is int]
    chosen = getattr(config, "keep_window_size", 0)
    lengths = [n if n <= SHORT else PROBED for n in lengths]
    return max([*lengths, chosen if chosen <= SHORT else 0])


@contextmanager
def short(model: nn.Module) -> Iterator[None]:
    """Make a model's windows above SHORT PROBED tokens long inside a with block."""
    owners: dict[int, object] = {}
    for module in model.modules():
        for owner in (module, getattr(module, "config", None)):
            if owner is not None:
                owners[id(owner)] = owner
    found = [
        (owner, name, value)
        for owner in owners.values()
        for name in NAMES
        if type(value := vars(owner).get(name)) is int and value > SHORT
    ]
    try:
        for owner, name, _ in found:
            setattr(owner, name, PROBED)
        yield
    finally:
        for owner, name, value in found:
            setattr(owner, name, value)
