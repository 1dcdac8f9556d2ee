"""New adapters of PEFT, drawn with a seed, on layers that the model has."""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from posttrain.common.suggest import nearest
from posttrain.model.kernels.quantized import is_quantised, stored_as
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
AFTER_A_DOT = ("c3a", "fourierft")
"""Kinds for which PEFT matches the keys of a pattern by a rule of their own."""


@contextmanager
def without_deprecations() -> Iterator[None]:
    """Silence the warnings of PEFT about names and about weights that we check ourselves."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        warnings.filterwarnings("ignore", ".*missing adapter keys.*", UserWarning)
        warnings.filterwarnings("ignore", "The following .* keys did not match", RuntimeWarning)
        yield


def add_peft(model: Any, kind: str, keys: dict[str, Any], seed: int) -> Any:
    """Return the model with a new adapter of a kind of PEFT, by its config's keys.

    It is drawn with the seed; torch's own random state is kept. Raises ValueError in one line for
    what PEFT cannot build, or builds otherwise than the keys read.
    """
    import peft

    check_quantised(model, keys)
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind.upper())]
        with without_deprecations():
            # PEFT writes into the patterns that it is given, for experts
            own = copy.deepcopy(keys)
            adapted = peft.get_peft_model(model, config(task_type="CAUSAL_LM", **own))
    except torch.OutOfMemoryError:
        raise
    except PEFT_FAILS as error:
        raise ValueError(f"model.adapter: {_reason(kind, error)}") from error
    finally:
        torch.set_rng_state(state)
    tuner: Any = adapted.base_model
    check_adapted(tuner.targeted_module_names, kind, keys)
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
    if text.startswith(("No modules were targeted", "All modules were excluded")):
        return "no layer is left to adapt: all of target_modules are excluded or trained whole"
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
        if key in BY_LAYER and isinstance(value, str):
            if value != "all-linear" or key != "target_modules":
                _check_pattern(key, value, names)
        elif key in BY_LAYER and value:
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
    _check_whole(keys, names)


def _check_whole(keys: dict[str, Any], names: list[str]) -> None:
    """Raise ValueError if PEFT would train other layers whole than modules_to_save names.

    It takes a name for every layer whose own name ends in its letters."""
    saved, targets = keys.get("modules_to_save") or [], keys.get("target_modules")
    for name in saved:
        if isinstance(targets, list) and name in targets:
            raise ValueError(
                f"model.adapter.target_modules: {name} is trained whole (modules_to_save, or "
                "model.resize_embeddings): leave it out of one of them"
            )
        alike = [full for full in names if full.endswith(name) and not _named(full, saved)]
        if alike:
            others = ", ".join(dict.fromkeys(full.rpartition(".")[2] for full in alike))
            own = next(full for full in names if _named(full, [name]))
            raise ValueError(
                f"model.adapter.modules_to_save: PEFT would take {name} for {others} too: write "
                f"the full name, such as {own}, or name them all"
            )


def _named(full: str, names: Sequence[str]) -> bool:
    """Whether one of the names is a layer's full name or its last parts."""
    return any(full == name or full.endswith(f".{name}") for name in names)


def check_quantised(model: nn.Module, keys: dict[str, Any]) -> None:
    """Raise ValueError for keys of PEFT that need whole weights where they are quantised."""
    layers = [name for name, module in model.named_modules() if is_quantised(module)]
    if not layers:
        return
    kind = (stored_as(model) or {})["type"]
    if keys.get("init_lora_weights") == "orthogonal":
        raise ValueError(
            "model.adapter.init_lora_weights: orthogonal draws in the dtype of the weights, which "
            f"are stored as {kind}: use gaussian or default, or set model.quantization: none"
        )
    for name in keys.get("modules_to_save") or []:
        for layer in layers:
            if f".{name}." in f".{layer}.":
                raise ValueError(
                    f"model.adapter.modules_to_save: {name} cannot be trained whole, since {layer} "
                    f"is stored as {kind}: name it in target_modules instead, or set "
                    "model.quantization: none"
                )


def check_adapted(adapted: list[str], kind: str, keys: dict[str, Any]) -> None:
    """Raise ValueError for keys of PEFT that do not act, or not always, on the adapted layers.

    `adapted` are their full names. Of several keys of a pattern that match a layer PEFT takes the
    first, and it writes them to adapter_config.json in the order of their letters."""
    chosen = keys.get("layers_to_transform")
    chosen = [chosen] if isinstance(chosen, int) else chosen or []
    for layer in adapted if chosen else []:
        number = re.search(r"\.(\d+)\.", layer)
        if number is not None and int(number[1]) not in chosen:
            raise ValueError(
                f"model.adapter.target_modules names {layer}, which is not in layers_to_transform "
                f"{chosen}: leave out its number, or layers_to_transform"
            )
    for key, pattern in keys.items():
        if not (key.endswith("_pattern") and isinstance(pattern, dict)):
            continue
        values: dict[str, tuple[str, Any]] = {}
        for name, value in pattern.items():
            rule = rf".*\.{name}$" if kind in AFTER_A_DOT else rf"(.*\.)?({name})$"
            if not (found := [layer for layer in adapted if re.match(rule, layer)]):
                raise ValueError(
                    f"model.adapter.{key}.{name}: no adapted layer has this name; adapted are "
                    f"{', '.join(_short(adapted, name))}"
                )
            for layer in found:
                first, other = values.setdefault(layer, (name, value))
                if other != value:
                    raise ValueError(
                        f"model.adapter.{key}: {first} and {name} give {layer} other values, and "
                        "which of them counts would depend on their order: write keys that share "
                        "no layer"
                    )


def _short(adapted: list[str], name: str) -> list[str]:
    """Return up to 12 names of layers: the last parts, or full ones if `name` has several parts."""
    parts = adapted if "." in name else [layer.rpartition(".")[2] for layer in adapted]
    return list(dict.fromkeys(parts))[:12]


def _check_pattern(key: str, pattern: str, names: list[str]) -> None:
    try:
        found = any(re.fullmatch(pattern, name) for name in names)
    except re.error as error:
        raise ValueError(f"model.adapter.{key}: not a regular expression ({error})") from None
    if found:
        return
    words = re.split(r"[,\s]+", pattern.strip())
    if all(any(_named(name, [word]) for name in names) for word in words):
        raise ValueError(
            f"model.adapter.{key}: a text is a regular expression for layers' full names: write "
            f"[{', '.join(words)}], a list"
        )
    raise ValueError(
        f"model.adapter.{key}: no layer's full name, such as {names[-1]}, matches the regular "
        f"expression {pattern!r}{_near(key, pattern, names)}"
    )


def _check_name(key: str, name: str, names: list[str]) -> None:
    if any(_named(full, [name]) for full in names):
        return
    if key == "modules_to_save" and name in ("score", "classifier", "v_head"):
        raise ValueError(
            f"model.adapter.{key}: leave out {name}: the head of a reward model, a classifier or "
            "PPO's values is trained and saved without it"
        )
    raise ValueError(f"model.adapter.{key}: the model has no layer {name}{_near(key, name, names)}")


def _near(key: str, name: str, names: list[str]) -> str:
    if key == "target_modules" and name.casefold().replace("_", "-") in ("all", "all-linear"):
        return "; write target_modules: all-linear, without brackets, for all linear layers"
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
