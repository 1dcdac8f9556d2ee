"""How ranks that are not there would share the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Layout:
    """A parallel strategy on `gpus` ranks of each of `nodes` machines."""

    gpus: int
    nodes: int = 1
    strategy: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    tensor: int = 1
    """Ranks that share each matrix."""
    sequence: int = 1
    """Ranks that share each row."""

    @property
    def name(self) -> str:
        """The strategy in words."""
        model = [f"tensor {self.tensor}"] * (self.tensor > 1)
        model += [f"sequence {self.sequence}"] * (self.sequence > 1)
        return " x ".join([*model, self.strategy])

    @property
    def ranks(self) -> int:
        """All ranks."""
        return self.gpus * self.nodes

    @property
    def replicate(self) -> int:
        """Groups that hold the same shards of sharded parameters."""
        return self.nodes if self.strategy == "hsdp" else 1

    @property
    def holders(self) -> int:
        """Ranks that hold each trained number together."""
        return self.tensor if self.strategy == "ddp" else self.ranks // self.replicate

    @property
    def shares(self) -> int:
        """Parts that the examples of a step are divided into."""
        return self.ranks // (self.tensor * self.sequence)
