"""PEFT's adapters other than LoRA: one section for all, whose keys are those of PEFT's config."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from posttrain.common.suggest import did_you_mean
from posttrain.config.yaml_values import as_written
from posttrain.model.adapters.base import Adapter, AdapterConfig

FINITE = ConfigDict(allow_inf_nan=False)
OWN_TARGETS = ("ia3", "ln_tuning", "trainable_tokens")
"""Kinds that do not adapt all linear layers by default, but those that PEFT chooses."""
AS_THE_BASE = {"c3a": {"init_weights": True}, "fourierft": {"init_weights": True}}
"""Defaults that differ from PEFT's: with those, the adapter would begin with a random change."""
STARTS_ELSEWHERE = ("unilora", "vblora")
"""Kinds that begin with a small random change of the base."""
NOT_OFFERED = {
    ("adamss", "use_asa"): "it masks subspaces by a schedule of its own",
    ("vblora", "save_only_topk_weights"): "what it saves cannot be trained further",
    ("hira", "rank_pattern"): "PEFT computes the ranks and does not use them",
    ("hra", "apply_GS"): "its pairs of equal vectors have no orthogonal basis: it begins with NaN",
    ("oft", "coft"): "it changes the trained weights in the forward pass",
}
"""Keys of PEFT that are refused unless they have their defaults, and why."""


class PeftKindConfig(AdapterConfig):
    """Another adapter of PEFT; its further keys are the fields of PEFT's config for this type.

    They keep PEFT's names and defaults, except that init_weights of c3a and fourierft is true, so
    that they begin as the base. unilora and vblora begin with a small random change.
    """

    model_config = ConfigDict(extra="allow")

    type: str = "vera"
    """The kind of adapter, by PEFT's name: docs/guide/adapters.md lists them."""
    target_modules: str | list[str] | None = None
    """Names of the layers to adapt, or a regular expression for their full names. By default all
    linear ones except the output head; for ia3, ln_tuning and trainable_tokens those of PEFT."""


def check_keys(section: PeftKindConfig) -> dict[str, Any]:
    """Return the fields of PEFT's config that a section sets.

    Raises ValueError for a key that PEFT's config does not have, or a value of another type.
    """
    fields, kind = fields_of(section.type), section.type
    result = {}
    hints = {name: fields[name] for name in section.model_extra or {} if name in fields}
    for name, value in as_written(dict(section.model_extra or {}), hints).items():
        if name not in fields:
            near = did_you_mean(name, [*fields, "target_modules"], "its keys are")
            raise ValueError(f"model.adapter.{name}: {kind} has no such key; {near}")
        try:
            result[name] = TypeAdapter(fields[name], config=FINITE).validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise ValueError(
                f"model.adapter.{name}: {problem[0].lower() + problem[1:]} (got {value!r})"
            ) from None
        if (reason := NOT_OFFERED.get((kind, name))) and result[name]:
            raise ValueError(f"model.adapter.{name} of {kind} is not offered: {reason}")
    return AS_THE_BASE.get(kind, {}) | result


def fields_of(kind: str) -> dict[str, Any]:
    """Return the type of each field that PEFT's config has for this kind alone, by its name."""
    import peft

    config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind.upper())]
    shared = {field.name for field in dataclasses.fields(peft.PeftConfig)} | {"target_modules"}
    hints = typing.get_type_hints(config)
    return {f.name: hints[f.name] for f in dataclasses.fields(config) if f.name not in shared}


def add(model: Any, section: PeftKindConfig, seed: int, whole: list[str] | None) -> Any:
    """Return the model with a new adapter, drawn with the seed; torch's own state is kept.

    The layers named in `whole` are trained and saved as they are.
    """
    # imported here since they import torch, and settings are read without it
    from posttrain.model.adapters.creation import add_peft, check_start, logits_of, settle_layers

    keys, fields = check_keys(section), fields_of(section.type)
    targets = section.target_modules
    if targets is None and section.type not in OWN_TARGETS:
        targets = "all-linear"
    if targets is not None:
        keys["target_modules"] = targets
    if section.type == "trainable_tokens":
        _check_tokens(keys.get("token_indices") or [], len(model.get_input_embeddings().weight))
    keys = settle_layers(model, keys, "exclude_modules" in fields)
    if whole and "modules_to_save" not in fields:
        raise ValueError(
            f"model.resize_embeddings: new rows would have to be trained, and {section.type} saves "
            "no layer whole: use model.adapter: {type: lora}"
        )
    if saved := sorted({*(keys.get("modules_to_save") or []), *(whole or [])}):
        keys["modules_to_save"] = saved
        _check_untied(model, section.type, saved)
    before = logits_of(model)
    adapted = add_peft(model, section.type, keys, seed)
    check_start(adapted, section.type, before, changes_base=False)
    return adapted


def _check_untied(model: Any, kind: str, saved: list[str]) -> None:
    """Raise ValueError if one of two tied layers is to be trained, which would take them apart."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if ends[1] is None or ends[0].weight is not ends[1].weight:
        return
    for name, module in model.named_modules():
        if any(module is end for end in ends) and name.endswith(tuple(saved)):
            raise ValueError(
                f"model.adapter: {name} shares its weights with another layer, and {kind} would "
                "train only one of the two: use model.adapter: {type: lora}"
            )


def _check_tokens(indices: list[int], rows: int) -> None:
    """Raise ValueError unless there are ids, each once and with a row of the embedding."""
    if not indices:
        raise ValueError("model.adapter.token_indices is missing: name the ids of the tokens")
    if outside := [index for index in indices if not 0 <= index < rows]:
        raise ValueError(
            f"model.adapter.token_indices: the model has no token {outside[0]}: ids are 0 to "
            f"{rows - 1}"
        )
    if len(set(indices)) < len(indices):
        raise ValueError("model.adapter.token_indices names an id more than once")


ADAPTER = Adapter(PeftKindConfig, add)
