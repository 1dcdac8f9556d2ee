"""What one side may do with an object that stays on the other side.

Both sides run this file; it reaches the sandbox over the channel, so it imports nothing beyond the
standard library.
"""

import builtins
import importlib
import io
import operator
import sys
from collections.abc import Callable
from typing import Any

# Plain classes of which an instance of a subclass has a plain value, most special first.
PLAIN_BASES = (int, float, complex, str, bytes, list, tuple, set, frozenset, dict, bytearray)
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
ARITHMETIC = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"),
    *("and_", "or_", "xor", "lshift", "rshift"),
)
IN_PLACE = tuple(f"i{name.strip('_')}" for name in ARITHMETIC)
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
    """Return (item,); at the end, which is no exception then, (None, value of the iterator)."""
    try:
        return (next(iterator),)
    except StopIteration as end:
        return None, end.value


_loops: list[Any] = []


def _wait(awaitable: Any) -> Any:
    """Return what an awaitable comes to; all are awaited in one loop, as in one program."""
    import asyncio
    import threading

    async def wait() -> Any:
        return await awaitable

    if asyncio._get_running_loop() is not None:
        results: list[Any] = []

        def work() -> None:
            try:
                results.append((asyncio.run(wait()), None))
            except BaseException as error:
                results.append((None, error))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        ((value, error),) = results
        if error is not None:
            raise error
        return value
    if not _loops:
        _loops.append(asyncio.new_event_loop())
    return _loops[0].run_until_complete(wait())


def _next_awaited(iterator: Any) -> tuple[Any, ...]:
    """Return (item,) of an asynchronous iterator, or () at the end."""
    try:
        return (_wait(anext(iterator)),)
    except StopAsyncIteration:
        return ()


def _exit_awaited(thing: Any, kind: Any, error: Any, trace: None) -> bool:
    known, error = _raised(kind, error)
    return bool(_wait(type(thing).__aexit__(thing, known, error, trace)))


def _raised(kind: Any, error: Any) -> tuple[Any, Any]:
    """Return the class and the exception with which a context is left."""
    if isinstance(error, BaseException):
        return type(error), error
    known = None if kind is None else getattr(builtins, kind)
    return known, None if known is None else known(error)


def _exit(thing: Any, kind: str | None, error: Any, trace: None) -> bool:
    """Leave a context, with an exception, or the text of one of the class of this name."""
    known, error = _raised(kind, error)
    return bool(type(thing).__exit__(thing, known, error, trace))


def _text(function: Callable[[Any], str]) -> Callable[[Any], str]:
    """Return a function whose result is exactly a str."""
    return lambda x: str.__str__(function(x))


def _parameters(function: Any) -> tuple[tuple[str, int, bool], ...]:
    """Return name, kind and whether there is a default, of the parameters of a function."""
    parameters = importlib.import_module("inspect").signature(function).parameters.values()
    return tuple((p.name, int(p.kind), p.default is not p.empty) for p in parameters)


def _library(module: str, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return getattr(importlib.import_module(module), name)(*arguments, **named)


_stdout: list[Any] = []


def _capture(starts: bool) -> str:
    """Start to keep what the program prints, or end that and return it."""
    if starts:
        _stdout.append(sys.stdout)
        sys.stdout = io.StringIO()
        return ""
    captured: Any = sys.stdout
    sys.stdout = _stdout.pop()
    return str(captured.getvalue())


def signature_of(parameters: Any) -> Any:
    """Return the signature with such parameters, of which the default values are not known here."""
    inspect = importlib.import_module("inspect")
    made = []
    for name, kind, has_default in parameters:
        default = ... if has_default else inspect.Parameter.empty
        made.append(inspect.Parameter(name, inspect._ParameterKind(kind), default=default))
    return inspect.Signature(made)


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
    "anext": _next_awaited,
    "aiter": aiter,
    "aenter": lambda thing: _wait(type(thing).__aenter__(thing)),
    "aexit": _exit_awaited,
    "type": type,
    "copy": lambda thing: importlib.import_module("copy").copy(thing),
    "deepcopy": lambda thing: importlib.import_module("copy").deepcopy(thing),
    "contains": operator.contains,
    "reversed": lambda thing: reversed(thing),
    "int": lambda thing: int.__index__(int(thing)),
    "float": lambda thing: float.__float__(float(thing)),
    "complex": lambda thing: complex.__pos__(complex(thing)),
    "index": operator.index,
    "round": round,
    "signature": _parameters,
    "library": _library,
    "capture": _capture,
    **{name: getattr(operator, name) for name in (*COMPARISONS, *ARITHMETIC, *UNARY)},
    **{name: getattr(operator, name) for name in IN_PLACE},
}
# Of functions and iterators of the tests, which the candidate was given.
OF_FUNCTIONS = frozenset({"call", "get", "signature", "str", "repr"})
OF_ITERATORS = frozenset({"iter", "next"})
OF_COROUTINES = frozenset({"await"})
OF_OBJECTS = OF_FUNCTIONS | OF_ITERATORS | {"set", "len", "bool", "hash", "getitem", "contains"}
OF_OBJECTS |= {"enter", "exit", *COMPARISONS}
