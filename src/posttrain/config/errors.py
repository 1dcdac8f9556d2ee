"""Error messages about a config: the key, what is wrong, and the nearest correct name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from posttrain.common.secrets import refuse_secrets
from posttrain.common.suggest import nearest
from posttrain.config.base import AlsoCalled, Key, SectionError, keys, marked, sections_in

Section = TypeVar("Section", bound=BaseModel)

MIXTURE_TAGS = ("DataConfig", "list[DataConfig]")
"""Tags that pydantic adds to the location of a key of `data`, which the user did not write."""


def parse(model: type[Section], tree: Mapping[str, Any], source: str) -> Section:
    """Return the section or config of a tree; raise ValueError, with `source` in front.

    A tree with a secret in it is refused, too."""
    try:
        refuse_secrets(tree)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"{source}: {explain(error, model)}") from None


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """Return all problems in one line: the key, what is wrong, and the nearest correct name.

    `root` is the whole schema, in which the section of a misplaced key is looked up.
    """
    known = list(keys(root))
    return "; ".join(dict.fromkeys(_problems(error, root, (), known)))


def hints_of(known: list[Key]) -> dict[str, str]:
    """Return, for each name that other frameworks use, what to write instead."""
    hints: dict[str, str] = {}
    for key in known:
        for mark in marked(key, AlsoCalled):
            for name, answer in mark.hints.items():
                hints.setdefault(name, answer or key.path)
    return hints


def _problems(
    error: ValidationError, model: type[BaseModel], before: tuple[str, ...], known: list[Key]
) -> Iterator[str]:
    for detail in error.errors():
        parts = [str(part) for part in detail["loc"] if part not in MIXTURE_TAGS]
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, SectionError):
            yield from _problems(cause.error, cause.model, (*before, *parts), known)
        elif detail["type"] == "extra_forbidden":
            yield _unknown_key(parts, model, before, known)
        else:
            yield _wrong_value(dict(detail), [*before, *parts], known)


def _unknown_key(
    parts: list[str], model: type[BaseModel], before: tuple[str, ...], known: list[Key]
) -> str:
    where, key = ".".join((*before, *parts)), parts[-1]
    section = ".".join(p for p in (*before, *parts[:-1]) if not p.isdigit())
    models = _models_at(model, parts[:-1])
    local = {name for m in models for name in m.model_fields}
    siblings = _children(known, section)
    hints = hints_of(known)
    if key in hints and (key not in siblings or hints[key].rpartition(".")[2] in local):
        return f"unknown key {where}: write {hints[key]}"
    # without siblings, `section` ends with a name that the user chose, such as that of a split
    siblings = siblings or _children(known, section.rpartition(".")[0])
    if key in siblings:
        types = [m.model_fields["type"].default for m in models if "type" in m.model_fields]
        kind = types[0] if types else ""
        few = f", whose keys are {', '.join(sorted(local - {'type'}))}" if len(local) < 20 else ""
        return f"{where} is a key of another {section} type, not of {kind}{few}"
    elsewhere = [k.path for k in known if k.path.rpartition(".")[2] == key]
    if elsewhere:
        best = min(elsewhere, key=lambda p: (not p.startswith(f"{section}."), p.count(".")))
        return f"{key} is not a key of {section or 'the top level'}: it belongs at {best}"
    near = nearest(key, local) or nearest(key, siblings)
    hint = f"did you mean {near}?" if near else f"known keys: {', '.join(sorted(local))}"
    return f"unknown key {where}: {hint}"


def _wrong_value(error: dict[str, Any], parts: list[str], known: list[Key]) -> str:
    where, kind = ".".join(parts), error["type"]
    if kind == "missing":
        return f"{where} is missing"
    if kind == "unknown_type":
        name, choices = error["ctx"]["tag"], error["ctx"]["names"]
        problem = f"{where}.type {name!r} is not known" if name else f"{where}.type is missing"
        near = nearest(name, choices) if name else None
        hint = f"did you mean {near}?" if near else f"expected one of {', '.join(choices)}"
        return f"{problem}; {hint}"
    message: str = error["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return message
    if kind == "path":
        return f"{where}: {message}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"{where}: expected a section with keys (got {error['input']!r})"
    # YAML reads yes, no, on and off as booleans
    quotes = kind == "string_type" and not isinstance(error["input"], (dict, list))
    fix = ": put it in quotes" if quotes and error["input"] is not None else ""
    return f"{where}: {message[0].lower() + message[1:]} (got {error['input']!r}){fix}"


def _children(known: list[Key], section: str) -> list[str]:
    paths = (key.path.rpartition(".") for key in known)
    return list(dict.fromkeys(name for parent, _, name in paths if parent == section))


def _models_at(root: type[BaseModel], parts: list[str]) -> list[type[BaseModel]]:
    """Return the possible section classes at a location, which is keys and list indices."""
    models = [root]
    for part in parts:
        infos = [m.model_fields[part] for m in models if part in m.model_fields]
        models = [model for info in infos for model in sections_in(info)] or models
    return models
