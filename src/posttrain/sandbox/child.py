"""The candidate's side: runs inside the sandbox, next to the model's program.

Nothing in this process is trusted: the program can read and change all of it. It gains nothing by
that, since no expected value ever comes here; a forged reply is one more way to return a wrong
value.

This file and those that it imports arrive over the channel, so they import only the standard
library. The first message says what to run. For a program of functions, each further message is one
operation, answered by one reply that repeats the nonce and its number. While an operation runs, the
program may use functions of the tests that it was given: then this side asks and waits in turn.
"""

import builtins
import importlib
import os
import resource
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CoroutineType
from typing import Any

from posttrain.sandbox.frames import read_frame, write_frame
from posttrain.sandbox.operations import OPERATIONS, plain_base, plain_value
from posttrain.sandbox.script import run_script
from posttrain.sandbox.wire import Common, decode, encode

LARGEST = 1 << 30  # bytes of a message from the trusted side
MESSAGE = 500  # characters of an exception's text that are passed on
# Special methods that a class of plain values may define and still pass by its value.
_HARMLESS = {"__init__", "__new__", "__repr__", "__str__", "__format__", "__hash__", "__eq__"}
_HARMLESS |= {"__ne__", "__reduce_ex__", "__reduce__", "__getnewargs__", "__init_subclass__"}
_HARMLESS |= {"__class_getitem__", "__dir__", "__setattr__", "__delattr__", "__getattribute__"}
_IMMUTABLE = (int, float, complex, str, bytes, tuple, frozenset)


def main(channel: int) -> None:
    """Run what the first message says, and never return."""
    job = decode(Common(), read_frame(channel, LARGEST))
    for name, value in job["limits"].items():
        # at the soft limit of processor time comes SIGXCPU, which no other cause of an end sends
        hard = value + 1 if name == "RLIMIT_CPU" else value
        resource.setrlimit(getattr(resource, name), (value, hard))
    if job["mode"] == "program":
        os.close(channel)
        run_script(job["program"])
    os.dup2(2, 0)
    os.dup2(2, 1)

    def exchange(reply: bytes) -> bytes:
        write_frame(channel, reply)
        return read_frame(channel, LARGEST)

    serve(job, exchange)


def _new_module(name: str) -> Any:
    module = type(sys)(name)
    sys.modules[name] = module
    return module


# --- programs of functions ------------------------------------------------------------------------


@dataclass
class Served:
    """A program, and what the trusted side knows of its objects."""

    job: dict[str, Any]
    exchange: Callable[[bytes], bytes]
    """Sends a message while an operation runs, and returns the next one."""
    common: Common = field(init=False)
    namespace: dict[str, Any] = field(default_factory=dict)
    objects: list[Any] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    """Numbers of the objects by id."""
    named_tuples: dict[tuple[Any, ...], type] = field(default_factory=dict)
    turn: int = 0
    """Number of the next message from this side."""

    def __post_init__(self) -> None:
        self.common = Common(
            lambda thing: _refer(self, thing), lambda kind, value: _resolve(self, kind, value)
        )

    def number_of(self, thing: Any) -> int:
        """Return the number of an object that stays here."""
        number = self.numbers.setdefault(id(thing), len(self.objects))
        if number == len(self.objects):
            self.objects.append(thing)
        return number

    def message(self, *parts: Any) -> bytes:
        """Return the next message from this side."""
        data, _ = encode(self.common, (self.job["nonce"], self.turn, *parts))
        self.turn += 1
        return data


def serve(job: dict[str, Any], exchange: Callable[[bytes], bytes]) -> None:
    """Load a program of functions, and answer operations until `exchange` raises."""
    served = Served(job, exchange)
    # without a module of this name, dataclasses and pickle do not work
    served.namespace = vars(_new_module("candidate"))
    reply = perform(served, "load")
    while True:
        reply = answer(served, exchange(reply))


def answer(served: Served, data: bytes) -> bytes:
    """Return the reply to a message with an operation."""
    try:
        _, operation, operands = decode(served.common, data)
    except Exception as error:
        return _failure(served, error)
    return perform(served, operation, *operands)


def perform(served: Served, operation: str, *operands: Any) -> bytes:
    """Carry out an operation; return the message that says what came of it."""
    try:
        if operation == "load":
            value: Any = _load(served)
        elif operation == "eval":
            value = _evaluate(*operands)
        else:
            value = OPERATIONS[operation](*operands)
        return served.message("value", value)
    except BaseException as error:
        return _failure(served, error)


def _failure(served: Served, error: BaseException) -> bytes:
    """Return the message of an exception: its classes, its arguments if plain, its text, itself."""
    names = tuple((str(c.__module__), c.__name__) for c in type(error).__mro__)
    try:
        text = str(error)[:MESSAGE] if isinstance(error, Exception) else ""
    except Exception:
        text = ""
    arguments = tuple(a for a in error.args if type(a) in (int, str, float, bool, type(None)))
    if arguments != error.args or len(str(arguments)) > MESSAGE:
        arguments = (text,)
    return served.message("error", names, arguments, text, Kept(error))


@dataclass
class Kept:
    """An object that passes by reference, whatever its class."""

    thing: Any


def _load(served: Served) -> dict[str, Any]:
    """Run the definitions that both sides share, then the program; return what the tests call."""
    job, namespace = served.job, served.namespace
    exec(compile(job["definitions"], "definitions.py", "exec"), namespace)
    shared = {name: namespace[name] for name in job["classes"] if name in namespace}
    exec(compile(job["program"], "candidate.py", "exec"), namespace)
    for name in job["classes"]:
        # a program may write such a class out again, as if its own were the one
        kind = namespace.get(name, shared.get(name))
        if isinstance(kind, type):
            served.common.classes[name] = kind
    return {name: namespace[name] for name in job["names"] if name in namespace}


def _evaluate(function: str, *operands: Any) -> Any:
    """Evaluate, run or compile a text that the tests got from this side."""
    if function == "compile":
        return compile(*operands)
    if function == "exec":
        text, space = operands
        exec(text, space)
        space.pop("__builtins__", None)
        return None
    return eval(*operands)


# --- objects that do not pass by value ------------------------------------------------------------


def _refer(served: Served, thing: Any) -> tuple[str, Any]:
    """Return the reference to an object: of this side's own, or lent by the other."""
    if type(thing) is Kept:
        return "remote", (served.number_of(thing.thing), "")
    if type(thing) is Lent:
        return "lent", (thing._number, thing._kind)
    kind = type(thing)
    if kind in served.named_tuples.values():
        return "named", (kind.__name__, kind._fields, tuple(thing))
    if isinstance(thing, type) and served.common.classes.get(thing.__name__) is thing:
        return "class", thing.__name__
    if served.common.classes.get(kind.__name__) is kind and hasattr(thing, "_member_map_"):
        return "member", (kind.__name__, str(thing.name))
    if kind.__module__ == "numpy" and hasattr(thing, "dtype"):
        return "scalar", (thing.dtype.str, thing.tobytes())
    number = served.number_of(thing)
    base = plain_base(kind)
    if base is None or isinstance(thing, type):
        return "remote", (number, "coroutine" if kind is CoroutineType else "")
    if base in _IMMUTABLE and not _overrides(kind, base):
        label = (number, served.number_of(kind), kind.__name__)
        return "derived", (*label, base.__name__, plain_value(thing))
    return "remote", (number, base.__name__)


def _overrides(kind: type, base: type) -> bool:
    """Whether a class between `kind` and `base` defines operators that `base` has."""
    between = kind.__mro__[: kind.__mro__.index(base)]
    own = {name for c in between for name in vars(c) if name in vars(base)}
    return any(name.startswith("__") for name in own - _HARMLESS - {"__doc__"})


def _resolve(served: Served, kind: str, value: Any) -> Any:
    """Return the object that a reference of the other side stands for."""
    match kind:
        case "remote" | "derived":
            return served.objects[value[0]]
        case "lent":
            return Lent(served, *value)
        case "global":
            module, path = value
            thing = importlib.import_module(module)
            for name in path.split("."):
                thing = getattr(thing, name)
            return thing
        case "named":
            name, fields, items = value
            key = (name, fields)
            if key not in served.named_tuples:
                served.named_tuples[key] = namedtuple(name, fields)
            return served.named_tuples[key](*items)
        case "class":
            return served.common.classes[value]
        case "member":
            return getattr(served.common.classes[value[0]], value[1])
    raise ValueError(f"no object of kind {kind}")


class Lent:
    """A function, iterator or object of the tests, which stays with them."""

    __slots__ = ("_kind", "_number", "_served")

    def __init__(self, served: Served, number: int, kind: str) -> None:
        object.__setattr__(self, "_served", served)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_kind", kind)

    def _ask(self, operation: str, *operands: Any) -> Any:
        served: Served = self._served
        message = served.message("ask", self._number, operation, operands)
        while True:
            kind, *rest = decode(served.common, served.exchange(message))
            if kind == "value":
                return rest[0]
            if kind == "error":
                name, text = rest
                raise getattr(builtins, name)(text)
            message = perform(served, rest[0], *rest[1])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._ask("call", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if self._kind != "object" or name.startswith("_"):
            raise AttributeError(name)
        return self._ask("get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name, value)

    def __iter__(self) -> Any:
        return self._ask("iter")

    def __next__(self) -> Any:
        item = self._ask("next")
        if not item:
            raise StopIteration
        return item[0]

    def __len__(self) -> int:
        length: int = self._ask("len")
        return length

    def __bool__(self) -> bool:
        return self._kind != "object" or bool(self._ask("bool"))

    def __str__(self) -> str:
        return str(self._ask("str"))

    def __getitem__(self, key: Any) -> Any:
        return self._ask("getitem", key)
