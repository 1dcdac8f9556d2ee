"""What one side may do with an object that stays on the other side.

Both sides run this file; it reaches the sandbox over the channel, so it imports nothing beyond the
standard library.
"""

import builtins
import operator
from collections.abc import Callable
from typing import Any

# Plain classes of which an instance of a subclass has a plain value, most special first.
PLAIN_BASES = (int, float, complex, str, bytes, list, tuple, set, frozenset, dict, bytearray)
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
ARITHMETIC = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"),
    *("and_", "or_", "xor", "lshift", "rshift"),
)
UNARY = ("neg", "pos", "invert", "abs")


def plain_base(kind: type) -> type | None:
    """Return the plain class that a class is derived from; None if there is none."""
    return next((base for base in PLAIN_BASES if issubclass(kind, base) and kind is not base), None)


def plain_value(thing: Any) -> Any:
    """Return the value of an object as its plain base class, by that class's own methods."""
    base = plain_base(type(thing))
    if base is int:
        return int.__index__(thing)
    if base is float:
        return float.__float__(thing)
    if base is complex:
        return complex(complex.__pos__(thing))
    if base is str:
        return str.__str__(thing)
    if base is dict:
        return dict(dict.items(thing))
    assert base is not None
    return base(list(base.__iter__(thing)))  # type: ignore[attr-defined]


def _next(iterator: Any) -> tuple[Any, ...]:
    """Return (item,), or () at the end, which is no exception then."""
    for item in iterator:
        return (item,)
    return ()


def _wait(awaitable: Any) -> Any:
    import asyncio

    async def wait() -> Any:
        return await awaitable

    return asyncio.run(wait())


def _exit(thing: Any, kind: str | None, error: Any, trace: None) -> bool:
    """Leave a context, with an exception or its text, of the class of this name."""
    known = None if kind is None else getattr(builtins, kind)
    if known is not None and type(error) is str:
        error = known(error)
    return bool(type(thing).__exit__(thing, known, error, trace))


def _text(function: Callable[[Any], str]) -> Callable[[Any], str]:
    """Return a function whose result is exactly a str."""
    return lambda x: str.__str__(function(x))


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda thing, arguments, named: thing(*arguments, **named),
    "get": getattr,
    "set": setattr,
    "delete": delattr,
    "iter": iter,
    "next": _next,
    "len": len,
    "str": _text(str),
    "repr": _text(repr),
    "format": lambda thing, spec: str.__str__(format(thing, spec)),
    "bool": bool,
    "hash": hash,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "enter": lambda thing: type(thing).__enter__(thing),
    "exit": _exit,
    "isinstance": isinstance,
    "issubclass": issubclass,
    "plain": plain_value,
    "await": _wait,
    **{name: getattr(operator, name) for name in (*COMPARISONS, *ARITHMETIC, *UNARY)},
}
# Of functions and iterators of the tests, which the candidate was given.
OF_FUNCTIONS = frozenset({"call"})
OF_ITERATORS = frozenset({"iter", "next"})
OF_OBJECTS = OF_FUNCTIONS | OF_ITERATORS | {"get", "set", "len", "str", "repr", "bool", "getitem"}
