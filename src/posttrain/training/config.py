"""The distributed section of a config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from posttrain.config.base import AlsoCalled, Free, StrictConfig


class DistributedConfig(StrictConfig):
    """How ranks started by torchrun share the work."""

    strategy: Annotated[Literal["ddp", "fsdp"], AlsoCalled(fsdp="distributed.strategy: fsdp")] = (
        "ddp"
    )
    """ddp: every rank holds the whole model; fsdp: parameters, gradients and optimiser state are
    sharded (FSDP2)."""
    timeout: Annotated[float, Free()] = Field(300.0, ge=1)
    """Seconds that a rank waits for the others, at the start and in each exchange with them, before
    the run ends with the name of the one that is missing."""
