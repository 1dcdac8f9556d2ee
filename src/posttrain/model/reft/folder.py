"""Folders of ReFT: reft_config.json and reft_model.safetensors, written and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.common.files import sha256
from posttrain.model.adapters.reft import ReftConfig
from posttrain.model.folder import REFT_CONFIG, REFT_WEIGHTS, SAVED_HEAD, adapter_config
from posttrain.model.integrity import check_tensors
from posttrain.model.kernels.quantized import num_weights
from posttrain.model.loaded import note_start, warn_of_other_base
from posttrain.model.reft.attach import add_edits


def save_reft(
    folder: Path, model: Any, weights: dict[str, Tensor], head: Tensor | None = None
) -> None:
    """Write the edits of a model, whose tensors are `weights` by the policy's names.

    With the `head` of a reward model or classifier, it is saved beside them."""
    base = str(model.config._name_or_path)
    settings = {
        "base_model_name_or_path": str(Path(base).resolve()) if Path(base).is_dir() else base,
        "base_parameters": base_parameters(model),
        "task_type": "CAUSAL_LM" if head is None else "SEQ_CLS",
        "adapter": model.reft_config.model_dump(mode="json"),
    }
    (folder / REFT_CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
    tensors = {name.removeprefix("model."): x.contiguous() for name, x in weights.items()}
    if head is not None:
        tensors[SAVED_HEAD] = head.contiguous()
    save_file(tensors, folder / REFT_WEIGHTS, {"format": "pt"})


def saved_edits(folder: Path) -> dict[str, Tensor]:
    """Return the tensors in a folder by the names of a transformers model's parameters."""
    return load_file(folder / REFT_WEIGHTS)


def base_parameters(model: Any) -> int:
    """Return the number of a model's parameters without its edits, quantised or not."""
    return sum(num_weights(p) for name, p in model.named_parameters() if ".reft." not in name)


def read_section(name: str) -> ReftConfig:
    """Return the settings of the edits in a folder; raise ValueError if they are damaged."""
    settings = adapter_config(name)
    try:
        return ReftConfig.model_validate(settings.get("adapter"))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"])) or "adapter"
        raise ValueError(f"model.name: {name}/{REFT_CONFIG}: {key}: {problem['msg']}") from None


def load_reft(model: Any, name: str, trainable: bool = False) -> Any:
    """Return the base model with the edits in a folder.

    Raises ValueError if they are damaged, or do not fit the base."""
    section, settings = read_section(name), adapter_config(name)
    base = settings["base_model_name_or_path"]
    folder = Path(name)
    if not (folder / REFT_WEIGHTS).is_file():
        raise ValueError(f"model.name: {name} has no {REFT_WEIGHTS}")
    shapes = check_tensors(folder / REFT_WEIGHTS)
    warn_of_other_base(model, folder)
    if settings.get("base_parameters") not in (None, (here := base_parameters(model))):
        raise ValueError(
            f"model.name: {name} is not of its base {base}: it was trained on a model of "
            f"{settings['base_parameters']:,} parameters, and this one has {here:,}"
        )
    try:
        model = add_edits(model, section, seed=0)
    except ValueError as error:
        raise ValueError(f"model.name: {name} does not fit its base {base}: {error}") from None
    expected = {n: list(p.shape) for n, p in model.named_parameters() if ".reft." in n}
    found = {n: list(shape) for n, shape in shapes.items() if n != SAVED_HEAD}
    for tensor in sorted({*expected, *found}):
        if expected.get(tensor) != found.get(tensor):
            raise ValueError(
                f"model.name: {name} does not fit its base {base}: {tensor} is "
                f"{found.get(tensor, 'absent')} in the file, {expected.get(tensor, 'absent')} here"
            )
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for tensor, value in saved_edits(folder).items():
            if not value.isfinite().all():
                raise ValueError(
                    f"model.name: {name} holds numbers that are not finite, in {tensor}: the run "
                    "that saved it had diverged"
                )
            if tensor != SAVED_HEAD:
                parameters[tensor].copy_(value)
    for tensor in expected:
        parameters[tensor].requires_grad_(trainable)
    note_start(model, sha256(folder / REFT_WEIGHTS))
    return model
