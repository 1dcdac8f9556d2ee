"""The runs of a series before they start: a recipe's list of models, as ordinary configs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import PydanticCustomError

from posttrain.common.errors import SettingError
from posttrain.common.suggest import did_you_mean
from posttrain.config.paths import plain_name
from posttrain.runs.config import Config, parse_config

MODELS = "models"
"""The key of a recipe that holds a list of models instead of one in `model`."""
OF_A_HUB = ("huggingface_id", "model_id", "hf_id", "path", "model_name_or_path", "base_model")
"""Keys that other programs have for the weights, beside a `name` that labels the run."""


@dataclass(frozen=True)
class Member:
    """One run of a series."""

    label: str
    """Its name in the series, and what its run directory's name begins with."""
    config: Config
    """With the series' folder as trainer.output_dir and the label as trainer.run_name."""
    params: dict[str, Any] = field(default_factory=dict)
    """The values that a sweep chose, by key."""
    overrides: list[str] = field(default_factory=list)
    """The same as overrides of the recipe, as a user writes them."""


def series_name(tree: Mapping[str, Any], recipe: str) -> str:
    """Return the name of a recipe's series: trainer.run_name, or the recipe's file name."""
    trainer = tree.get("trainer")
    name = trainer.get("run_name") if isinstance(trainer, dict) else None
    return str(name or Path(recipe).stem)


def member(
    tree: Mapping[str, Any], source: str, label: str, name: str, sweep: Mapping[str, Any]
) -> Member:
    """Return the run of a tree of sections; `name` is the series' folder in output_dir."""
    config = parse_config(tree, source)
    trainer = config.trainer
    if trainer.resume_from_checkpoint is not None:
        raise ValueError(
            f"{source}: remove trainer.resume_from_checkpoint: a series finds the runs that were "
            "interrupted by itself"
        )
    folder = str(Path(trainer.output_dir) / name)
    update = {"output_dir": folder, "run_name": label}
    config = config.model_copy(update={"trainer": trainer.model_copy(update=update)})
    return Member(label, config, dict(sweep))


def models_of(tree: Mapping[str, Any], recipe: str) -> list[Member]:
    """Return a run for each entry of the recipe's `models`.

    Raises ValueError with one line for what is wrong with the list or with any of its runs.
    """
    trees = labelled_trees(tree, recipe)
    name = series_name(tree, recipe)
    return [
        member(one, f"{recipe}, models.{i} ({label})", label, name, {})
        for i, (label, one) in enumerate(trees)
    ]


def labelled_trees(tree: Mapping[str, Any], recipe: str) -> list[tuple[str, dict[str, Any]]]:
    """Return label and tree of each entry of `models`, an ordinary recipe with its `model`."""
    entries = tree[MODELS]
    if "model" in tree:
        raise ValueError(
            f"{recipe}: give either model or models: write the keys of model into each entry of "
            "models (an override too: models.0.dtype=float32)"
        )
    if not isinstance(entries, list) or not entries:
        raise ValueError(
            f"{recipe}: models: expected a list of model sections, such as "
            f"[{{name: org/a}}, {{name: org/b, label: b}}]; got {entries!r}"
        )
    sections = [_section(entry, f"{recipe}: models.{i}") for i, entry in enumerate(entries)]
    labels = [section.pop("label") for section in sections]
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        places = ", ".join(f"models.{i}" for i, label in enumerate(labels) if label == twice[0])
        raise ValueError(
            f"{recipe}: {places} are all labelled {twice[0]}: give each a label of its own "
            "(by default it is the last part of name)"
        )
    rest = {key: value for key, value in tree.items() if key != MODELS}
    return [(label, {"model": section, **rest}) for label, section in zip(labels, sections)]


def _section(entry: Any, where: str) -> dict[str, Any]:
    """Return a copy of an entry with its label; a text alone is the model's name."""
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected a model section with keys, got {entry!r}")
    section = dict(entry)
    name = section.get("name")
    weights = next((key for key in OF_A_HUB if key in section), None)
    if weights is not None:
        label = name if name and name != section[weights] else "NAME"
        raise ValueError(
            f"{where}: write name: {section[weights]} instead of {weights}, since name is the "
            f"model's weights, and label: {label} for the name of the run"
        )
    if name is not None and "scratch" in section:
        raise ValueError(
            f"{where}: name is the model's weights, and scratch are random ones: to name the run, "
            f"write label: {name}"
        )
    if "label" not in section:
        last = str(name).rstrip("/").rpartition("/")[2] if name is not None else "scratch"
        section["label"] = re.sub(r"[^\w.+-]+", "-", last).strip("-") or "model"
    try:
        section["label"] = plain_name(_label_text(section["label"], where))
    except PydanticCustomError as error:
        raise ValueError(f"{where}: label {error.message()}") from None
    return section


def _label_text(label: Any, where: str) -> str:
    if isinstance(label, bool) or not isinstance(label, str | int | float) or label == "":
        raise ValueError(f"{where}: label: expected a name, got {label!r}")
    return str(getattr(label, "text", label))


def selected(
    members: Sequence[tuple[str, Mapping[str, Any]]], model: str | None, model_index: int | None
) -> int:
    """Return the index of the entry that a label, a model's name or an index chooses.

    `members` are label and tree of each. Raises SettingError if it chooses none, or several.
    """
    labels = [label for label, _ in members]
    listed = ", ".join(f"{i} {label}" for i, label in enumerate(labels))
    if model is not None and model_index is not None:
        raise SettingError("model_index", "give either the index of a model or its label")
    if model_index is not None:
        if not 0 <= model_index < len(labels):
            most = len(labels) - 1
            raise SettingError(
                "model_index", f"expected 0 to {most}, got {model_index}; the models are {listed}"
            )
        return model_index
    assert model is not None
    if model in labels:
        return labels.index(model)
    by_name = [i for i, (_, tree) in enumerate(members) if tree["model"].get("name") == model]
    if len(by_name) == 1:
        return by_name[0]
    if by_name:
        same = ", ".join(labels[i] for i in by_name)
        raise SettingError("model", f"{model} is the name of several: choose by label: {same}")
    hint = did_you_mean(model, labels, "the labels are")
    raise SettingError("model", f"no model is labelled {model}; {hint}")
