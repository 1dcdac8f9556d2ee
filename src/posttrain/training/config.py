"""The distributed section."""

from __future__ import annotations

from typing import Annotated, Literal

from posttrain.config.base import AlsoCalled, StrictConfig


class DistributedConfig(StrictConfig):
    """How ranks started by torchrun share the work."""

    strategy: Annotated[Literal["ddp", "fsdp"], AlsoCalled(fsdp="distributed.strategy: fsdp")] = (
        "ddp"
    )
    """ddp: every rank holds the model; fsdp: parameters and optimiser are sharded (FSDP2)."""
