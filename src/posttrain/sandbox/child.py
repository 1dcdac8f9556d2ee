"""The candidate's side: runs inside the sandbox, next to the model's program.

Nothing in this process is trusted: the program can read and change all of it. It gains nothing by
that, since no expected value ever comes here; a forged reply is one more way to return a wrong
value.

This file and those that it imports arrive over the channel, so they import only the standard
library. The first message says what to run. For a program of functions, each further message is one
operation, answered by one reply that repeats the nonce and its number. While an operation runs, the
program may use functions of the tests that it was given: then this side asks and waits in turn.
"""

import importlib
import os
import resource
import sys
from collections import namedtuple
from collections.abc import Callable
from types import (
    CoroutineType,
    FunctionType,
    GeneratorType,
    GetSetDescriptorType,
    MemberDescriptorType,
)
from typing import Any, NamedTuple

from posttrain.sandbox.borrowed import Lent, exception_class, make_exception
from posttrain.sandbox.frames import label, read_frame, write_frame
from posttrain.sandbox.operations import OPERATIONS, plain_base, plain_value
from posttrain.sandbox.script import run_script
from posttrain.sandbox.shared import Common
from posttrain.sandbox.wire import decode, encode

LARGEST = 1 << 30  # bytes of a message from the trusted side
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


class Served:
    """A program, and what the trusted side knows of its objects."""

    exchange: Callable[[bytes], bytes]
    """Sends a message while an operation runs, and returns the next one."""
    numbers: dict[int, int]
    """Numbers of the objects by id."""
    lent: dict[int, Any]
    """What stands for functions, objects and exceptions of the tests, by their number."""
    borrowed: dict[int, int]
    """Those numbers by id of what stands for them."""
    libraries: dict[int, tuple[str, str]]
    """Functions of the library that the tests passed, by id."""
    turn: int
    """Number of the next message from this side."""

    def __init__(self, job: dict[str, Any], exchange: Callable[[bytes], bytes]) -> None:
        self.job, self.exchange = job, exchange
        self.namespace: dict[str, Any] = {}
        self.objects: list[Any] = []
        self.named_tuples: dict[tuple[Any, ...], type] = {}
        self.numbers, self.lent, self.borrowed, self.libraries = {}, {}, {}, {}
        self.turn = 0
        self.common = Common(
            lambda thing: _refer(self, thing), lambda kind, value: _resolve(self, kind, value)
        )

    def number_of(self, thing: Any) -> int:
        """Return the number of an object that stays here."""
        number = self.numbers.setdefault(id(thing), len(self.objects))
        if number == len(self.objects):
            self.objects.append(thing)
        return number

    def borrow(self, number: int, operation: str, operands: tuple[Any, ...]) -> Any:
        """Have the tests carry out an operation with what they lent, and return its value."""
        message = self.message("ask", number, operation, operands)
        while True:
            kind, *rest = decode(self.common, self.exchange(message))
            if kind == "value":
                return rest[0]
            if kind == "error":
                raise rest[0]
            message = perform(self, rest[0], *rest[1])

    def message(self, *parts: Any) -> bytes:
        """Return the next message from this side."""
        data = label(self.job["nonce"], self.turn) + encode(self.common, parts)[0]
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
    """Return the message of an exception."""
    try:
        return served.message("error", error)
    except Exception:  # it holds something that cannot be sent
        return served.message("error", Bare(error))


class Kept(NamedTuple):
    """An object that passes by reference, whatever its class."""

    thing: Any


class Bare(NamedTuple):
    """An exception that passes with its class and text alone."""

    error: BaseException


def _load(served: Served) -> dict[str, Any]:
    """Run the definitions that both sides share, then the program; return what the tests call."""
    job, namespace = served.job, served.namespace
    exec(compile(job["definitions"], "definitions.py", "exec"), namespace)
    shared = {name: namespace[name] for name in job["classes"] if name in namespace}
    exec(compile(job["program"], "candidate.py", "exec"), namespace)
    for name in job["classes"]:
        # a program may write such a class out again, as if its own were the one
        kind = namespace.get(name, shared.get(name))
        if isinstance(kind, type) and issubclass(kind, tuple):
            served.named_tuples[name, getattr(kind, "_fields", ())] = kind
        elif isinstance(kind, type):
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
    kind = type(thing)
    if kind is Kept:
        return "remote", (served.number_of(thing.thing), "")
    if id(thing) in served.borrowed:
        return "lent", (served.borrowed[id(thing)], "")
    if id(thing) in served.libraries:
        return "global", served.libraries[id(thing)]
    if kind is Bare or isinstance(thing, BaseException):
        return "exception", _describe(thing)
    if kind in served.named_tuples.values():
        return "named", (kind.__name__, kind._fields, tuple(thing))
    if isinstance(thing, type) and served.common.classes.get(thing.__name__) is thing:
        return "class", thing.__name__
    if isinstance(thing, type) and issubclass(thing, BaseException):
        bases = tuple(base for base in thing.__bases__ if issubclass(base, BaseException))
        return "exception class", (Kept(thing), str(thing.__module__), thing.__name__, bases)
    if served.common.classes.get(kind.__name__) is kind and hasattr(thing, "_member_map_"):
        return "member", (kind.__name__, str(thing.name))
    number = served.number_of(thing)
    base = plain_base(kind)
    if base is None or isinstance(thing, type):
        return "remote", (number, _ROLES.get(kind, ""))
    if base in _IMMUTABLE and not _overrides(kind, base):
        label = (number, served.number_of(kind), kind.__name__)
        return "derived", (*label, base.__name__, plain_value(thing))
    return "remote", (number, base.__name__)


# Objects whose kind matters to the tests, besides those of plain classes.
_ROLES: dict[type, str] = {
    CoroutineType: "coroutine",
    GeneratorType: "generator",
    FunctionType: "function",
}


def _describe(thing: Any) -> tuple[Any, ...]:
    """Return class, arguments, text, attributes and cause of an exception, and itself."""
    error = thing.error if type(thing) is Bare else thing
    try:
        text = str(error) if isinstance(error, Exception) else ""
    except Exception:
        text = ""
    if type(thing) is Bare:
        return type(error), (text,), text, {}, None, Kept(error)
    names = {n for k in type(error).__mro__ for n, v in vars(k).items() if type(v) in _FIELDS}
    names |= vars(error).keys()
    attributes = {
        name: getattr(error, name, None)
        for name in sorted(names - {"args", "obj"})
        if not name.startswith("_")
    }
    return type(error), error.args, text, attributes, error.__cause__, Kept(error)


_FIELDS = (MemberDescriptorType, GetSetDescriptorType)


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
            number, role = value
            return _keep(served, number, lambda: Lent(served, number, role))
        case "exception class":
            number, name, bases = value
            return _keep(served, number, lambda: exception_class(name, bases))
        case "exception":
            number, *parts = value
            return _keep(served, number, lambda: make_exception(*parts))
        case "global":
            module, path = value
            thing = importlib.import_module(module)
            for name in path.split("."):
                thing = getattr(thing, name)
            served.libraries[id(thing)] = (module, path)
            served.objects.append(thing)  # so that its id stays its own
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


def _keep(served: Served, number: int, make: Callable[[], Any]) -> Any:
    """Return what stands for something of the tests: the same object each time."""
    if number not in served.lent:
        served.lent[number] = make()
        served.borrowed[id(served.lent[number])] = number
    return served.lent[number]
