"""What `distributed.strategy: auto` stands for on the ranks at hand, and why."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from posttrain.common import distributed
from posttrain.common.sizes import in_bytes
from posttrain.model.parallel.split import check_parts
from posttrain.runs.memory import LIBRARIES, Estimate, measure
from posttrain.runs.plan import Plan
from posttrain.training.config import DistributedConfig
from posttrain.training.sharding import obstacle

SHARE = 0.9  # of a GPU's memory; the rest is for the context, NCCL and fragments


def settle_strategy(plan: Plan) -> tuple[Plan, str]:
    """Return the plan with ddp or fsdp in place of auto, and a line that says why.

    Raises ValueError if the models cannot be split as the section says.
    The line is empty if there was no choice. The same on all ranks. A collective.
    """
    section = plan.config.distributed
    check_split(plan)
    if section.offload == "parameters":
        return offloaded(plan)
    if section.strategy != "auto" or distributed.num_ranks() == 1:
        return plan, ""
    device = plan.models.policy.device
    needed = max(distributed.all_gather(of_rank(measure(plan), section)))
    room = min(distributed.all_gather(memory_of_rank(device)))
    said = f"a rank needs about {in_bytes(needed)} of {in_bytes(room)}"
    problem = obstacle(plan.models.policy)
    if needed <= room:
        strategy, why = "ddp", f"{said}; sharding what fits is slower"
    elif problem is None:
        strategy, why = "fsdp", said
    else:
        strategy, why = "ddp", f"{said}, but {problem}"
    return _with(plan, strategy), f"{strategy}, since {why}"


def offloaded(plan: Plan) -> tuple[Plan, str]:
    """Return what `settle_strategy` does if parameters are to lie in the CPU's memory."""
    section, ranks = plan.config.distributed, distributed.num_ranks()
    on_gpu = plan.models.policy.device.type != "cpu"
    if section.strategy == "ddp" or (ranks == 1 and on_gpu):
        raise ValueError(
            "distributed.offload: parameters is for sharded ones, which take several ranks and "
            "distributed.strategy: fsdp or hsdp; offload: optimizer is for one process and ddp too"
        )
    if section.strategy != "auto" or ranks == 1:
        return plan, ""
    return _with(plan, "fsdp"), "fsdp, since distributed.offload is parameters"


def _with(plan: Plan, strategy: str) -> Plan:
    section = plan.config.distributed.model_copy(update={"strategy": strategy})
    return replace(plan, config=plan.config.model_copy(update={"distributed": section}))


def check_split(plan: Plan) -> None:
    """Raise ValueError if the models cannot be split as the distributed section says."""
    section = plan.config.distributed
    for policy in filter(None, (plan.models.policy, plan.models.other)):
        check_parts(policy, section.tensor_parallel, section.sequence_parallel)


def of_rank(whole: Estimate, section: DistributedConfig) -> int:
    """Return the bytes of a rank that holds a part of the matrices and runs a part of the rows."""
    parts = section.tensor_parallel
    return sum(whole.fixed.values()) // parts + whole.activations // section.sequence_parallel


def memory_of_rank(device: torch.device) -> int:
    """Return the bytes that one rank may take, the same whenever it is asked on a machine.

    Free memory would be a better guess, but a resumed run could then be sharded otherwise.
    """
    if device.type == "cuda":
        return round(SHARE * torch.cuda.get_device_properties(device).total_memory)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(0, memory // here - LIBRARIES)
