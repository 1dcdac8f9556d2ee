"""The distributed section of a config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from posttrain.config.base import AlsoCalled, Free, StrictConfig


class DistributedConfig(StrictConfig):
    """How ranks started by torchrun share the work."""

    strategy: Annotated[
        Literal["auto", "ddp", "fsdp", "hsdp"],
        Free(),
        AlsoCalled(fsdp="distributed.strategy: fsdp"),
    ] = "auto"
    """ddp: every rank holds the whole model; fsdp: parameters, gradients and optimiser state are
    sharded over all ranks (FSDP2); hsdp: they are sharded over the ranks of each machine; auto: ddp
    if the model fits into a rank's memory, else fsdp. Results are equal up to rounding."""
    reshard_after_forward: Annotated[bool, Free()] = True
    """Whether sharded layers free what they have gathered after the forward pass, and gather it
    again in the backward pass. false exchanges a third less and holds all weights once, in the
    dtype that computes."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype in which sharded gradients are summed over the ranks."""
    offload: Annotated[Literal["none", "optimizer", "parameters"], Free()] = "none"
    """What is in the CPU's memory instead of a GPU's. optimizer: AdamW's state, which is on the GPU
    one parameter at a time, for its update; results have the same bits, and a step moves 16 bytes
    for each trained number. parameters: sharded parameters, their gradients and AdamW's state,
    which the CPU updates; for `strategy` fsdp and hsdp, on several ranks."""
    tensor_parallel: Annotated[
        int, Free(), AlsoCalled(tensor_model_parallel_size="distributed.tensor_parallel")
    ] = Field(1, ge=1)
    """Ranks that hold parts of each matrix together, and of the output head's vocabulary; they
    train on the same rows. It divides the number of heads. The other ranks share the data, by
    `strategy`."""
    sequence_parallel: Annotated[int, Free()] = Field(1, ge=1)
    """Ranks that run parts of each row together (Ulysses); each holds all heads' weights. For rows
    that are too long for one rank."""
    timeout: Annotated[float, Free()] = Field(300.0, ge=1)
    """Seconds that a rank waits for the others, at the start and in each exchange with them, before
    the run ends with the name of the one that is missing."""
