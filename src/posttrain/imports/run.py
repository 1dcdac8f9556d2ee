"""An import from its request to the draft of a recipe."""

from __future__ import annotations

import re

from posttrain.common.errors import SettingError
from posttrain.imports.draft import Draft
from posttrain.imports.read import Request, source_of
from posttrain.imports.write import shown

ENVIRONMENT = [
    "env.CUDA_*",
    "env.NCCL_*",
    "env.GLOO_*",
    "env.TORCH_*",
    "env.PYTORCH_*",
    "env.TOKENIZERS_PARALLELISM",
    "env.OMP_NUM_THREADS",
    "env.VLLM_*",
    "env.RAY_*",
    "env.HYDRA_*",
    "env.WANDB_*",
    "env.TRANSFORMERS_*",
    "env.HF_*",
    "env.PYTHON*",
    "env.ASCEND_*",
    "env.HCCL_*",
    "env.HIP_*",
    "env.ROCR_*",
    "env.DISABLE_VERSION_CHECK",
    "env.PATH",
    "env.UCX_* env.TENSORBOARD_DIR env.USE_OPTIMIZED_MODEL env.DISABLE_L2_CACHE env.LD_*",
    "env.FORCE_TORCHRUN",
    "env.NNODES",
    "env.NODE_RANK",
    "env.MASTER_*",
    "env.NPROC_PER_NODE",
    "env.TRITON_*",
    "env.ACCELERATE_*",
    "env.LOGLEVEL",
    "env.TASK_QUEUE_ENABLE",
    "env.CPU_AFFINITY_CONF",
    "env.DS_*",
    "env.SETUPTOOLS_*",
]
"""Variables that tell a machine, not a method, from another."""


def import_request(
    request: Request,
    name: str | None = None,
    method: str | None = None,
    processes: int | None = None,
) -> Draft:
    """Return the draft of a recipe, with a line for every key of the request.

    `name` is the framework and `method` its training method, if the request shows neither. Raises
    ValueError if the framework is not known, or the method is not."""
    _, source = source_of(request, name)
    program = method or _method(request, source.programs)
    if not program and source.method_of is not None:
        program = source.method_of(request.settings)
    if source.needs_method and program not in source.needs_method:
        problem = f"no method {program}" if program else "the file does not name the method"
        choices = ", ".join(source.needs_method)
        raise SettingError("method", f"{request.origin}: {problem}: choose one of {choices}")
    if not request.settings:
        raise ValueError(f"{request.origin} gives no settings")
    settings = {**request.settings, **_environment(request)}
    draft = Draft(
        source.title, settings, program, processes or request.processes or 1, request.folders
    )
    try:
        source.convert(draft)
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        value = draft.settings.get(draft.last_read)
        if isinstance(error, ValueError) and draft.last_read in str(error):
            raise
        raise ValueError(
            f"{request.origin}: {draft.last_read}: {source.title} takes no {shown(value)!r} there "
            f"({error})"
        ) from None
    draft.skip("of the machine: set it again if this one needs it", *ENVIRONMENT)
    draft.finish()
    for key in [k for k in draft.lines if k.rpartition(".")[2] in request.repeated]:
        draft.decide(key, "without effect", "", "given twice: the last one counts")
    return draft


def _method(request: Request, programs: tuple[str, ...]) -> str:
    """Return the method that a command names, if a group of the source's expressions catches it."""
    for program in programs:
        match = re.search(rf"(?:^|[\s/]){program}$", request.command)
        if match and match.groups():
            return str(match.group(1))
    return ""


def _environment(request: Request) -> dict[str, str]:
    """Return the variables that a script exports, as keys: how processes run is left out."""
    return {f"env.{name}": value for name, value in request.environment.items()}
