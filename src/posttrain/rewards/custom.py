"""A reward from the user's own file: any function of the registry's form, sync or async."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Custom(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["custom"] = "custom"
    path: str
    """A Python file."""
    function: str = "reward"


def build(config: Custom) -> Callable[..., Any]:
    """The function `config.function` of the file; ValueError where there is none."""
    path = Path(config.path)
    spec = importlib.util.spec_from_file_location(path.stem, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise ValueError(f"reward.path: no Python file {config.path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = vars(module).get(config.function)
    if not callable(function):
        found = ", ".join(n for n, v in vars(module).items() if callable(v) and n[0] != "_")
        raise ValueError(f"{config.path} has no function {config.function!r}; found: {found}")
    return function
