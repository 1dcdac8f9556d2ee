"""New adapters of PEFT, drawn with a seed, on layers that the model has."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from posttrain.common.suggest import nearest
from posttrain.model.quirks import not_adapted

log = logging.getLogger(__name__)

PEFT_FAILS = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
    AssertionError,
    ArithmeticError,
    ImportError,
)
"""What PEFT raises for settings that make no sense together, or not for this model."""
LARGEST_ROUNDING = 1e-2
"""Nats by which an adapter that changes fp32 weights may change the model at its start."""
BY_LAYER = ("target_modules", "exclude_modules", "modules_to_save")
"""Keys that name layers; those that end in _pattern have such names as keys."""


@contextmanager
def without_deprecations() -> Iterator[None]:
    """Silence the warnings of PEFT about names and about weights that we check ourselves."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        warnings.filterwarnings("ignore", ".*missing adapter keys.*", UserWarning)
        yield


def add_peft(model: Any, kind: str, keys: dict[str, Any], seed: int) -> Any:
    """Return the model with a new adapter of a kind of PEFT, by its config's keys.

    It is drawn with the seed; torch's own random state is kept. Raises ValueError in one line for
    what PEFT cannot build.
    """
    import peft

    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind.upper())]
        with without_deprecations():
            adapted = peft.get_peft_model(model, config(task_type="CAUSAL_LM", **keys))
    except torch.OutOfMemoryError:
        raise
    except PEFT_FAILS as error:
        raise ValueError(f"model.adapter: {_reason(kind, error)}") from error
    finally:
        torch.set_rng_state(state)
    return adapted


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor | None:
    """Return the logits [1, 8, vocab] of a text; None of a model that cannot run.

    The probe will refuse such an architecture in words."""
    model.eval()
    device = next(model.parameters()).device
    ids = torch.arange(1, 9, device=device)[None] % len(model.get_input_embeddings().weight)
    try:
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits.float()
    except PEFT_FAILS:
        return None
    return logits


def check_start(model: Any, kind: str, base: torch.Tensor | None, changes_base: bool) -> None:
    """Warn if a new adapter begins with a change of the model, and by how much.

    `base` are its logits before. Raises ValueError if it begins with numbers that are not finite,
    and for a change beyond rounding by an adapter that `changes_base`, whose checkpoint would
    be another model."""
    ours = logits_of(model)
    if base is None or ours is None:
        return
    if base.isfinite().all() and not ours.isfinite().all():
        raise ValueError(
            f"model.adapter: with these settings, {kind} begins with numbers that are not finite"
        )
    change = float((ours.log_softmax(-1) - base.log_softmax(-1)).abs().max())
    if changes_base and change > LARGEST_ROUNDING:
        raise ValueError(
            f"model.adapter: {kind} begins with a change of the model by {change:.2g} nats, which "
            "its checkpoint would not have: use model.adapter: {type: lora}"
        )
    if change > (1e-4 if next(model.parameters()).dtype == torch.float32 else 0.1):
        log.warning(
            "%s begins with a change of the model: its log-probs differ by up to %.2g", kind, change
        )


def _reason(kind: str, error: Exception) -> str:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if layer := re.match(r"Target module (?:for \w+: )?(\w+)\(", text):
        return f"PEFT has no {kind} for layers of the type {layer[1]}: change target_modules"
    if "specify `target_modules`" in text:
        return f"PEFT has no layers for {kind} in this architecture: name them in target_modules"
    return f"PEFT cannot build {kind} with these settings: {text[:200].rstrip(' .:')}"


def settle_layers(model: nn.Module, keys: dict[str, Any], excludes: bool = True) -> dict[str, Any]:
    """Return the keys of PEFT with what all-linear means for a model, after check_names.

    PEFT does not know it together with layers_to_transform, and not of layers that only look
    linear; a kind that `excludes` nothing is given names too.
    """
    check_names(model, keys)
    if keys.get("target_modules") != "all-linear":
        return keys
    left_out = not_adapted(model) or []
    if left_out and excludes:
        written = keys.get("exclude_modules") or []
        if isinstance(written, str):
            written = [name for name, _ in model.named_modules() if re.fullmatch(written, name)]
        keys = keys | {"exclude_modules": [*left_out, *written]}
    if keys.get("layers_to_transform") is None and (excludes or not left_out):
        return keys
    head = model.get_output_embeddings()  # type: ignore[operator]
    linear = [n for n, m in model.named_modules() if _is_linear(m) and m is not head]
    names = [name for name in linear if name not in left_out]
    if not left_out:
        names = sorted({name.rpartition(".")[2] for name in names})
    return keys | {"target_modules": names}


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def check_names(model: nn.Module, keys: dict[str, Any]) -> None:
    """Raise ValueError if a key of PEFT names layers that the model does not have.

    PEFT itself asks for one match of all the names together, and takes the rest for others' models.
    """
    names = [name for name, _ in model.named_modules() if name]
    for key, value in keys.items():
        if key in ("target_modules", "layers_to_transform") and value == []:
            raise ValueError(f"model.adapter.{key} is empty: leave it out to adapt all layers")
        if key in BY_LAYER and isinstance(value, str) and value != "all-linear":
            _check_pattern(key, value, names)
        elif key in BY_LAYER and value and value != "all-linear":
            for name in value:
                _check_name(key, name, names)
        elif key.endswith("_pattern") and isinstance(value, dict):
            for name in value:
                if name not in names and not any(n.endswith(f".{name}") for n in names):
                    _check_pattern(f"{key}.{name}", rf"(.*\.)?({name})", names)
        elif key == "layers_to_transform" and value is not None:
            _check_layers(model, [value] if isinstance(value, int) else value)
            if (targets := keys.get("target_modules")) != "all-linear" and isinstance(targets, str):
                raise ValueError(
                    "model.adapter.layers_to_transform needs names of layers, or all-linear, in "
                    f"target_modules, not the regular expression {targets!r}"
                )


def _check_pattern(key: str, pattern: str, names: list[str]) -> None:
    try:
        found = any(re.fullmatch(pattern, name) for name in names)
    except re.error as error:
        raise ValueError(f"model.adapter.{key}: not a regular expression ({error})") from None
    if not found and any(name.endswith(f".{pattern}") for name in names):
        raise ValueError(
            f"model.adapter.{key}: a text is a regular expression for layers' full names: write "
            f"[{pattern}], a list"
        )
    if not found:
        near = _near(pattern, names)
        raise ValueError(
            f"model.adapter.{key}: no layer's full name, such as {names[-1]}, matches the regular "
            f"expression {pattern!r}{near}"
        )


def _check_name(key: str, name: str, names: list[str]) -> None:
    if any(full == name or full.endswith(f".{name}") for full in names):
        return
    if key == "modules_to_save" and name in ("score", "classifier", "v_head"):
        raise ValueError(
            f"model.adapter.{key}: leave out {name}: the head of a reward model, a classifier or "
            "PPO's values is trained and saved without it"
        )
    raise ValueError(f"model.adapter.{key}: the model has no layer {name}{_near(name, names)}")


def _near(name: str, names: list[str]) -> str:
    if name.replace("_", "-") == "all-linear":
        return "; write target_modules: all-linear, without brackets"
    last = list(dict.fromkeys(full.rpartition(".")[2] for full in names))
    words = [word for word in last if not word.isdigit()]
    near = nearest(name.rpartition(".")[2], words)
    return f"; did you mean {near}?" if near else f"; there are {', '.join(words[:12])}"


def _check_layers(model: nn.Module, chosen: list[int]) -> None:
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    count = max(map(len, lists), default=0)
    if outside := [layer for layer in chosen if not 0 <= layer < count]:
        raise ValueError(
            f"model.adapter.layers_to_transform: the model has layers 0 to {count - 1}, not "
            f"{outside[0]}"
        )
