"""Folders of pyreft 0.1 (stanfordnlp/pyreft): read into our form, and written.

pyreft saves each edit as a pickle of tensors, which is read here by torch's unpickler of tensors
alone, and pyvene's config.json, which names neither the base model nor the edited positions: these
are given. Two edits of one layer are those of the first and of the last tokens, in this order.
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from posttrain.config.errors import parse
from posttrain.model.adapters.reft import ReftConfig
from posttrain.model.integrity import read_json
from posttrain.model.reft.forms import FORMS

CLASSES = {
    "loreft": "LoreftIntervention",
    "direft": "NodireftIntervention",
    "noreft": "NoreftIntervention",
    "consreft": "ConsreftIntervention",
    "lobireft": "LobireftIntervention",
    "direft_orthogonal": "DireftIntervention",
}
"""pyreft's classes by our names; its DireftIntervention is not the paper's DiReFT."""
COMPONENTS = {
    "block_output": "block_output",
    "block_input": "block_input",
    "mlp_output": "mlp_output",
    "attention_output": "attention_output",
    "query": "query_output",
    "key": "key_output",
    "value": "value_output",
}
"""pyvene's names of components by ours."""
ROUNDING = 0.05
"""How far bf16 may take rows from orthonormal ones."""
DAMAGED = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What torch and Python raise for a file that holds something else."""
KEY = re.compile(r"layer_(\d+)_comp_(\w+?)_unit_pos_nunit_1#(\d+)")

Edit = dict[str, Tensor]
"""`directions` [r, d], `bias` [r] and `weight` [r, d] of an edit, as in `forms.Edit`."""
Place = tuple[int, int]
"""The layer, and the number of the edit in it."""


def read_pyreft(
    name: str, positions: str, activation: str = "linear"
) -> tuple[ReftConfig, dict[Place, Edit]]:
    """Return the settings and the edits of a folder that pyreft's `save` wrote.

    Raises ValueError for a folder that is none, or that mixes forms, components or ranks."""
    folder, config = Path(name), read_json(Path(name) / "config.json")
    for needed in ("intervention_types", "sorted_keys"):
        found = config.get(needed)
        if not isinstance(found, list) or not found or not all(isinstance(x, str) for x in found):
            raise ValueError(
                f"{name} is no folder that pyreft saved: expected a config.json with a list of "
                f"texts, {needed}"
            )
    kinds = {kind.rpartition(".")[2].rstrip("'>") for kind in config["intervention_types"]}
    forms = [ours for ours, theirs in CLASSES.items() if theirs in kinds]
    matches = [KEY.fullmatch(key) for key in config["sorted_keys"]]
    components = {match[2] if match else "?" for match in matches}
    ours = [ours for ours, theirs in COMPONENTS.items() if theirs in components]
    if (
        len(forms) != len(kinds)
        or len(forms) != 1
        or len(ours) != len(components)
        or len(ours) != 1
    ):
        raise ValueError(
            f"{name}: expected edits of one form and one component, got {', '.join(sorted(kinds))} "
            f"on {', '.join(sorted(components))}"
        )
    edits: dict[Place, Edit] = {}
    for match, key in zip(matches, config["sorted_keys"]):
        assert match is not None
        file = folder / f"intkey_{key}.bin"
        edit = edits[int(match[1]), int(match[3])] = _read(file, forms[0])
        rows = edit["directions"]
        gap = (rows @ rows.T - torch.eye(len(rows))).abs().max()
        if FORMS[forms[0]].orthogonal and not gap < ROUNDING:
            raise ValueError(f"{file}: the rows of R are not orthonormal, by {gap:.2g}")
    layers = sorted({layer for layer, _ in edits})
    ends = {number for _, number in edits}
    ranks = {len(edit["bias"]) for edit in edits.values()}
    if len(edits) != len(layers) * len(ends) or not ends <= {0, 1} or len(ranks) != 1:
        raise ValueError(f"{name}: expected one or two edits of one rank in each of its layers")
    keys = {"type": forms[0], "component": ours[0], "layers": layers, "rank": ranks.pop()}
    keys |= {"positions": positions, "activation": activation, "share_weights": len(ends) == 1}
    return parse(ReftConfig, keys, f"{name}, read with these positions and activation"), edits


def _read(file: Path, form: str) -> Edit:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError, EOFError, *DAMAGED) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file} holds no tensors that can be read safely: {reason}") from error
    try:
        edit = _edit({key: x.float() for key, x in state.items()}, form)
    except DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{file} does not hold the tensors of {CLASSES[form]}: {type(error).__name__}: {reason}"
        ) from error
    rank, width = (*edit["directions"].shape, 0, 0)[:2]
    shapes = {"directions": (rank, width), "weight": (rank, width), "bias": (rank,)}
    for part, tensor in edit.items():
        if rank < 1 or tensor.shape != shapes[part] or not tensor.isfinite().all():
            raise ValueError(
                f"{file}: expected finite numbers of one rank and width, got {list(tensor.shape)} "
                f"for the {part} of an edit of {rank} directions"
            )
    return edit


def _edit(state: dict[str, Tensor], form: str) -> Edit:
    """Return an edit from pyreft's tensors; raise one of DAMAGED for others."""
    if form == "loreft":
        edit = {"directions": state["rotate_layer"].T, "weight": state["weight"]}
        return edit | {"bias": state["bias"]}
    if form in ("direft", "noreft"):
        bias = state["learned_source.bias"]
        if form == "noreft":  # pyreft subtracts W2 h + its bias
            bias = torch.stack([bias, -state["proj_layer.bias"]]).sum(0)  # of equal shapes
        edit = {"directions": state["proj_layer.weight"], "weight": state["learned_source.weight"]}
        return edit | {"bias": bias}
    edit = {"directions": _rotation(state).T}
    if form == "direft_orthogonal":
        edit |= {"weight": state["learned_source.weight"], "bias": state["learned_source.bias"]}
        return edit
    return edit | {"bias": state["learned_source"]}


class _Rotation(nn.Module):
    """What torch parametrises as orthogonal in pyreft: a weight [d, r]."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(shape)))


def _rotation(state: dict[str, Tensor]) -> Tensor:
    """Return R^T [d, r] from the state of torch's orthogonal parametrisation."""
    prefix = "rotate_layer."
    layer: Any = orthogonal(_Rotation(state[f"{prefix}parametrizations.weight.original"].shape))
    own = {key.removeprefix(prefix): x for key, x in state.items() if key.startswith(prefix)}
    layer.load_state_dict(own)
    weight: Tensor = layer.weight.detach()
    return weight


def _rotation_state(rows: Tensor) -> dict[str, Tensor]:
    """Return the state of torch's orthogonal parametrisation of R^T, for R [r, d]."""
    layer: Any = orthogonal(_Rotation(rows.T.shape))
    layer.weight = rows.T
    return {f"rotate_layer.{key}": x.clone() for key, x in layer.state_dict().items()}


def write_pyreft(
    folder: Path, section: ReftConfig, edits: dict[Place, Edit], rows: dict[Place, Tensor]
) -> None:
    """Write edits as pyreft's `save` does; `rows` are R or W2 [r, d] of each edit."""
    order = sorted(edits, key=lambda place: place[::-1])
    component, width = COMPONENTS[section.component], next(iter(rows.values())).shape[1]
    keys = [f"layer_{layer}_comp_{component}_unit_pos_nunit_1#{number}" for layer, number in order]
    config = {
        "intervention_constant_sources": [True] * len(order),
        "intervention_dimensions": [width] * len(order),
        "intervention_types": [f"<class 'pyreft.interventions.{CLASSES[section.type]}'>"]
        * len(order),
        "mode": "parallel",
        "representations": [
            [layer, component, "pos", 1, section.rank, *[None] * 9] for layer, _ in order
        ],
        "sorted_keys": keys,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for place, key in zip(order, keys):
        torch.save(_state(section.type, edits[place], rows[place]), folder / f"intkey_{key}.bin")


def _state(form: str, edit: Edit, rows: Tensor) -> dict[str, Tensor]:
    sizes = {
        "embed_dim": torch.tensor(rows.shape[1]),
        "interchange_dim": torch.tensor(rows.shape[1]),
    }
    if form == "loreft":
        return {"weight": edit["weight"], "bias": edit["bias"], "rotate_layer": rows.T.contiguous()}
    if form in ("direft", "noreft"):
        state = {"proj_layer.weight": rows, "proj_layer.bias": torch.zeros(len(rows))}
        source = {"learned_source.weight": edit["weight"], "learned_source.bias": edit["bias"]}
        return sizes | state | source
    if form == "direft_orthogonal":
        source = {"learned_source.weight": edit["weight"], "learned_source.bias": edit["bias"]}
        return sizes | _rotation_state(rows) | source
    return sizes | {"learned_source": edit["bias"]} | _rotation_state(rows)
