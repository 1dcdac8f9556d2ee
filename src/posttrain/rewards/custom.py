"""A reward from a Python file of the user: a function as in base.py, sync or async."""

from __future__ import annotations

import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from posttrain.config.paths import LocalPath
from posttrain.rewards.base import Reward, RewardConfig


class Custom(RewardConfig):
    """Settings of the custom reward: a function in a Python file of your own."""

    type: Literal["custom"] = "custom"
    path: LocalPath
    """Path of the Python file."""
    function: str = "reward"
    """Name of the function in that file."""


def build(config: Custom) -> Callable[..., Any]:
    """Return `config.function` of the file.

    Raises ValueError if the file cannot be run, with the line in it, or has no such function."""
    path = Path(config.path)
    if not path.is_file():
        raise ValueError(f"reward.path: no Python file {config.path}")
    # registered, since dataclasses look their module up, and under a name no other module has
    module = types.ModuleType(f"custom_reward_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    # run, not imported: an import would leave a __pycache__ that may become older than the file
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except Exception as error:
        own = [x for x in traceback.extract_tb(error.__traceback__) if x.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else own[-1].lineno if own else None
        what = error.msg if isinstance(error, SyntaxError) else error
        where = "" if line is None else f", line {line}"
        raise ValueError(f"reward.path: {path}{where}: {type(error).__name__}: {what}") from error
    function: Any = vars(module).get(config.function)
    if not callable(function):
        names = ", ".join(n for n, v in vars(module).items() if callable(v) and n[0] != "_")
        raise ValueError(f"{config.path} has no function {config.function!r}; found: {names}")
    reward: Callable[..., Any] = function
    return reward


REWARD = Reward(Custom, build)
