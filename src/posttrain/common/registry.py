"""Registries: literal dicts from a name to "module:attribute".

A registry lists its entries without importing them, so that listing names and reporting a typo
cost nothing. A value that is not a string is the entry itself: a script adds its own that way.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from posttrain.common.suggest import did_you_mean


def load(entry: Any) -> Any:
    """Return the object that a registry entry names, importing its module if it is a string."""
    if not isinstance(entry, str):
        return entry
    module, _, attribute = entry.partition(":")
    return getattr(import_module(module), attribute)


def look_up(registry: Mapping[str, Any], name: object, problem: str) -> Any:
    """Return the object that `registry[name]` names.

    Raises ValueError that begins with `problem`, for example "no data set 'gsm8'", and ends with
    the nearest name.
    """
    if name not in registry:
        raise ValueError(f"{problem}; {did_you_mean(name, registry)}")
    return load(registry[str(name)])
