"""Edits of ReFT to and from folders of pyreft."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from posttrain.export.target import check_new, new_folder
from posttrain.model.folder import is_reft, resolve_model_path
from posttrain.model.load import load_causal_lm, load_tokenizer
from posttrain.model.reft.attach import add_edits
from posttrain.model.reft.folder import read_section, save_reft, saved_edits
from posttrain.model.reft.forms import FORMS, orthonormal
from posttrain.model.reft.pyreft import Edit, Place, read_pyreft, write_pyreft

NAME = re.compile(r"\.(\d+)\.(?:.*\.)?reft\.edits\.(\d+)\.(\w+)$")
"""The layer, the number of the edit in it, and the part, in a parameter's name."""


def to_pyreft(source: Path, folder: Path) -> tuple[str, str]:
    """Write the edits in a folder in pyreft's form; return more arguments of its load, and a note.

    pyreft stores no positions: they are in the note. Raises ValueError for a folder without edits.
    """
    if not is_reft(source):
        raise ValueError(
            f"{source} holds no edits of ReFT: only those have a form in pyreft; export it as "
            "safetensors"
        )
    section = read_section(str(source))
    edits: dict[Place, Edit] = {}
    for name, tensor in saved_edits(source).items():
        if (match := NAME.search(name)) is not None:
            edits.setdefault((int(match[1]), int(match[2])), {})[match[3]] = tensor
    rows = {place: edit["directions"] for place, edit in edits.items()}
    if FORMS[section.type].orthogonal:
        rows = {place: orthonormal(directions) for place, directions in rows.items()}
    write_pyreft(folder, section, edits, rows)
    function = "" if section.activation == "linear" else f", act_fn={section.activation!r}"
    return function, (
        f"pyreft.ReftModel.load(folder, model){function}; it stores no positions: edit "
        f"{section.positions} of the prompt, counted by posttrain's rule for short prompts"
    )


def from_pyreft(
    source: Path, output: Path, base: str, positions: str, activation: str = "linear"
) -> None:
    """Write a folder of edits, with the base's tokenizer, from one of pyreft.

    Raises ValueError if it does not fit the base."""
    check_new(output)
    section, edits = read_pyreft(str(source), positions, activation)
    base = resolve_model_path(base)
    model = add_edits(load_causal_lm(base, torch.float32), section, seed=0)
    weights = {}
    for name, parameter in model.named_parameters():
        match = NAME.search(name)
        if match is None:
            continue
        value = edits[int(match[1]), int(match[2])][match[3]]
        if value.shape != parameter.shape:
            raise ValueError(
                f"{source} does not fit {base}: {name} is {list(value.shape)} in the folder and "
                f"{list(parameter.shape)} here: name the base that was edited"
            )
        weights[f"model.{name}"] = value.clone()
    with new_folder(output) as folder:
        save_reft(folder, model, weights)
        load_tokenizer(base).save_pretrained(folder)
