"""Functions of the standard library that look into a class, for objects of the candidate.

`dataclasses.asdict(f(1))` in a test finds a stand-in where it expects a data class. For stand-ins,
these functions work in the candidate's process; for anything else, as ever.
"""

import asyncio
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

from posttrain.sandbox.remote import Remote

# Loaded in the lane, not by each row's tests.
_FUNCTIONS = {
    dataclasses: ("asdict", "astuple", "fields", "is_dataclass", "replace"),
    inspect: ("iscoroutinefunction", "isgeneratorfunction", "isasyncgenfunction", "isabstract"),
    asyncio: ("iscoroutinefunction",),
}


def adapt_library() -> None:
    """Make the above so in this process, which runs tests."""
    for module, names in _FUNCTIONS.items():
        space = vars(module)
        for name in names:
            if not hasattr(space[name], "_of_library"):
                space[name] = _adapted(space[name], module.__name__, name)


def _adapted(function: Callable[..., Any], module: str, name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def adapted(thing: Any, *rest: Any, **named: Any) -> Any:
        if type(thing) is Remote:
            return thing._session.ask("library", module, name, (thing, *rest), named)
        return function(thing, *rest, **named)

    adapted._of_library = function  # type: ignore[attr-defined]
    return adapted
