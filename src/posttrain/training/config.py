"""The distributed section of a config."""

from __future__ import annotations

from typing import Annotated, Literal

from posttrain.config.base import AlsoCalled, StrictConfig


class DistributedConfig(StrictConfig):
    """How ranks started by torchrun share the work."""

    strategy: Annotated[Literal["ddp", "fsdp"], AlsoCalled(fsdp="distributed.strategy: fsdp")] = (
        "ddp"
    )
    """ddp: every rank holds the whole model; fsdp: parameters, gradients and optimiser state are
    sharded (FSDP2)."""
