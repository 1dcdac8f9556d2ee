"""A reward from the user's own file: any function of the registry's form, sync or async."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from posttrain.rewards.base import Reward, RewardConfig


class Custom(RewardConfig):
    """A function of your own, from a Python file."""

    type: Literal["custom"] = "custom"
    path: str
    """A Python file."""
    function: str = "reward"
    """The name of the function in that file."""


def build(config: Custom) -> Callable[..., Any]:
    """The function `config.function` of the file; ValueError where there is none."""
    path = Path(config.path)
    if not path.is_file():
        raise ValueError(f"reward.path: no Python file {config.path}")
    # under a name that no other module has; dataclasses look theirs up
    module = types.ModuleType(f"custom_reward_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    # not imported: that leaves a __pycache__ beside the file, which may be older than its source
    exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    function: Any = vars(module).get(config.function)
    if not callable(function):
        found = ", ".join(n for n, v in vars(module).items() if callable(v) and n[0] != "_")
        raise ValueError(f"{config.path} has no function {config.function!r}; found: {found}")
    found_function: Callable[..., Any] = function
    return found_function


REWARD = Reward(Custom, build)
