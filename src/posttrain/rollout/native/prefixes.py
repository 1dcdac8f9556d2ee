"""Keys and values of recent prompts, in blocks that prompts with the same beginning share.

They hold for one version of the weights and one adapter, and only for networks in which the state
of a token depends on the tokens before it alone.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from posttrain.rollout.native.cache import Prefill

BLOCK = 32  # tokens; what is left of a prompt after its last whole block is not kept


Prompt = tuple[str | None, tuple[int, ...]]
"""A prompt's adapter and ids."""


Key = tuple[int | str | None, tuple[int, ...]]
"""The number of the block before, or the adapter, and a block's ids: what begins alike is equal."""


@dataclass
class Block:
    """BLOCK tokens of a prompt, after those of the blocks before it."""

    number: int
    numbers: Tensor
    """Keys and values of all layers in one piece, since many small ones scatter the memory."""
    shapes: dict[int, tuple[torch.Size, torch.Size]]
    """Shapes [H_kv, BLOCK, D] of each layer's keys and values."""
    length: int = BLOCK

    @classmethod
    def of(cls, number: int, layers: dict[int, tuple[Tensor, Tensor]]) -> Block:
        """Return a copy of each layer's keys and values."""
        flat = torch.cat([x.reshape(-1) for pair in layers.values() for x in pair])
        shapes = {layer: (key.shape, value.shape) for layer, (key, value) in layers.items()}
        return cls(number, flat, shapes)

    def layers(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Return keys and values [H_kv, BLOCK, D] by layer."""
        shapes = [shape for pair in self.shapes.values() for shape in pair]
        parts = self.numbers.split([shape.numel() for shape in shapes])
        tensors = iter(part.view(shape) for part, shape in zip(parts, shapes))
        return {layer: (next(tensors), next(tensors)) for layer in self.shapes}

    @property
    def num_bytes(self) -> int:
        """Return the memory that it takes."""
        return self.numbers.nbytes


class PrefixCache:
    """Blocks of prompts, of which the longest unused ones are dropped beyond `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self.blocks: OrderedDict[Key, Block] = OrderedDict()
        self.numbers = count(1)
        self.version = 0
        self.asked = self.found = 0
        """Prompt tokens looked up so far, and those of them that were there."""

    def find(self, prompt: Prompt, version: int) -> list[Block]:
        """Return the blocks that a prompt begins with, leaving at least its last token."""
        self._check(version)
        before: int | str | None
        before, ids = prompt
        keys: list[Key] = []
        blocks: list[Block] = []
        for start in range(0, len(ids) - BLOCK, BLOCK):
            key = before, ids[start : start + BLOCK]
            block = self.blocks.get(key)
            if block is None:
                break
            keys.append(key)
            blocks.append(block)
            before = block.number
        for key in reversed(keys):  # a block is never dropped before those that continue it
            self.blocks.move_to_end(key)
        self.asked += len(ids)
        self.found += BLOCK * len(blocks)
        return blocks

    def keep(self, prompts: list[Prompt], past: Prefill, version: int) -> None:
        """Take the keys and values of the last pack of a prefill, which holds these prompts."""
        self._check(version)
        start = 0
        before: int | str | None
        for before, ids in prompts:
            keys: list[Key] = []
            for at in range(0, len(ids) - BLOCK + 1, BLOCK):
                key = before, ids[at : at + BLOCK]
                if key not in self.blocks:
                    where = slice(start + at, start + at + BLOCK)
                    layers = {
                        layer: (packs[-1][0][0, :, where], packs[-1][1][0, :, where])
                        for layer, packs in past.layers.items()
                    }
                    self.blocks[key] = Block.of(next(self.numbers), layers)
                    self.num_bytes += self.blocks[key].num_bytes
                before = self.blocks[key].number
                keys.append(key)
            for key in reversed(keys):
                self.blocks.move_to_end(key)
            start += len(ids)
        while self.num_bytes > self.max_bytes:
            _, block = self.blocks.popitem(last=False)
            self.num_bytes -= block.num_bytes

    def forget(self, adapter: str) -> None:
        """Drop what prompts read by an adapter begin with; what continues it is never found."""
        for key in [key for key in self.blocks if key[0] == adapter]:
            self.num_bytes -= self.blocks.pop(key).num_bytes

    def clear(self) -> None:
        """Drop all blocks."""
        self.blocks.clear()
        self.num_bytes = 0

    def _check(self, version: int) -> None:
        if version != self.version:
            self.clear()
            self.version = version


class Continued:
    """A prefill whose prompts continue from blocks; what a network calls as its cache."""

    is_initialized = False

    def __init__(self, past: Prefill, known: list[list[Block]], lengths: list[int]) -> None:
        self.past, self.lengths = past, lengths
        self.known = [[block.layers() for block in blocks] for blocks in known]

    def update(
        self, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Collect a layer's keys and values with the blocks in front of each prompt's."""
        pair = key.to(value.dtype), value
        joined = []
        for which, x in enumerate(pair):
            parts: list[Tensor] = []
            for blocks, own in zip(self.known, x[0].split(self.lengths, dim=1)):
                parts += [layers[layer][which] for layers in blocks]
                parts.append(own)
            joined.append(torch.cat(parts, dim=1)[None])
        return self.past.update(joined[0], joined[1], layer)

    def get_seq_length(self, layer: int = 0) -> int:
        """Return 0, as a prefill does."""
        return 0
