"""What the tests pass to a candidate besides plain values: functions, iterators, own objects.

A function of Python or its library is passed by its name. A function or iterator of the tests, or
an object of a class of theirs, is lent: it stays here, and the candidate may call it, take its next
item, or use its public attributes.
"""

import sys
from collections.abc import Iterator
from types import (
    BuiltinFunctionType,
    CoroutineType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

from posttrain.sandbox.containers import is_computed
from posttrain.sandbox.operations import (
    OF_COROUTINES,
    OF_FUNCTIONS,
    OF_ITERATORS,
    OF_OBJECTS,
    OPERATIONS,
)

_FUNCTIONS = (
    *(FunctionType, MethodType, BuiltinFunctionType),
    *(MethodDescriptorType, WrapperDescriptorType),
)
_OPERATIONS = {
    "function": OF_FUNCTIONS,
    "iterator": OF_ITERATORS,
    "object": OF_OBJECTS,
    "coroutine": OF_COROUTINES,
}
# What else than public attributes a candidate may read.
_READABLE = ("__name__", "__qualname__", "__doc__", "__module__")


class Unsendable(Exception):
    """The test passes something to the candidate that cannot be sent or lent."""


def lend(
    lent: dict[int, Any], named_tuples: dict[Any, type], classes: dict[str, type], thing: Any
) -> tuple[str, Any]:
    """Return the reference to an object of the tests, which is kept in `lent` if it stays here.

    Raises:
        Unsendable: It is none of the above.
    """
    kind = type(thing)
    if isinstance(thing, type) and classes.get(thing.__name__) is thing:
        return "class", thing.__name__
    if classes.get(kind.__name__) is kind and hasattr(thing, "_member_map_"):
        return "member", (kind.__name__, thing.name)
    if kind.__base__ is tuple and isinstance(getattr(kind, "_fields", None), tuple):
        named_tuples[kind.__name__, kind._fields] = kind
        return "named", (kind.__name__, kind._fields, tuple(thing))
    if (found := _by_name(thing)) is not None:
        lent[id(thing)] = thing
        return "global", found
    # kept in `lent`, so that its id stays its own
    number = id(thing)
    lent[number] = thing
    if isinstance(thing, BaseException):
        text = str(thing)
        plain = all(type(a) in (int, str, float, bool, type(None)) for a in thing.args)
        return "exception", (number, kind, thing.args if plain else (text,), text)
    if isinstance(thing, type) and issubclass(thing, BaseException):
        bases = tuple(base for base in thing.__bases__ if issubclass(base, BaseException))
        return "exception class", (number, thing.__name__, bases)
    role = _role(thing)
    if role is None:
        del lent[number]
        raise Unsendable(f"the test passes a {kind.__name__}, which cannot be sent")
    return "lent", (number, role)


def _by_name(thing: Any) -> tuple[str, str] | None:
    """Return the module and name of a function or class of the standard library."""
    if not isinstance(thing, (type, *_FUNCTIONS)) or isinstance(thing, MethodType):
        return None
    owner = getattr(thing, "__objclass__", None)
    path = thing.__qualname__
    module = owner.__module__ if owner is not None else thing.__module__
    if module is None or module.split(".")[0] not in sys.stdlib_module_names:
        return None
    found: Any = sys.modules.get(module)
    for name in path.split("."):
        found = getattr(found, name, None)
    return (module, path) if found is thing else None


def builtin_of(error: BaseException) -> str:
    """Return the name of the nearest of Python's own classes of an exception."""
    return next(k.__name__ for k in type(error).__mro__ if k.__module__ == "builtins")


def _role(thing: Any) -> str | None:
    """Return how an object is lent: as a function, an iterator or an object; None if not at all."""
    if isinstance(thing, (ModuleType, type)):
        return "function" if isinstance(thing, type) else None
    if isinstance(thing, Iterator):
        return "iterator"
    if isinstance(thing, CoroutineType):
        return "coroutine"
    module = type(thing).__module__
    if isinstance(thing, _FUNCTIONS) or (callable(thing) and module in ("functools", "operator")):
        return "function"
    if module.split(".")[0] == "numpy" and callable(thing):
        return "function"
    if module == "unittest.mock" and not isinstance(thing, type):
        return "object"
    return "object" if module in ("test", "prompt") else None


def perform_lent(thing: Any, operation: str, operands: tuple[Any, ...]) -> Any:
    """Return what the candidate gets from an object of the tests.

    Raises:
        PermissionError: An object of its kind does not offer the operation.
    """
    role = _role(thing)
    assert role is not None
    if operation not in _OPERATIONS[role]:
        raise PermissionError(f"a {role} of the tests does not offer {operation}")
    if operation == "get" and role == "function" and operands[0] not in _READABLE:
        raise AttributeError(operands[0])
    hidden = operation in ("get", "set") and str(operands[0]).startswith("_")
    if hidden and (operation == "set" or operands[0] not in _READABLE):
        raise AttributeError(operands[0])
    if operation in ("get", "set") and type(thing).__module__ == "unittest.mock":
        name = str(operands[0])
        if name.startswith("assert") or name in dir(sys.modules["unittest.mock"].Mock()):
            raise PermissionError(f"{name} of a mock is for the tests")
    if operation == "set" and is_computed(type(thing), operands[0]):
        raise PermissionError(f"{operands[0]} is a method of an object of the tests")
    return OPERATIONS[operation](thing, *operands)


def resolve_lent(
    lent: dict[int, Any],
    named_tuples: dict[Any, type],
    classes: dict[str, type],
    kind: str,
    value: Any,
) -> Any:
    """Return the object of the tests that a reference in a reply stands for.

    Raises:
        ValueError: There is none.
    """
    if kind == "lent":
        return lent[value[0]]
    if kind == "global":  # only one that the tests have passed
        (found,) = [thing for thing in lent.values() if _by_name(thing) == value]
        return found
    if kind == "class" and type(value) is str:
        return classes[value]
    if kind == "member":
        name, member = value
        return vars(classes[name])["_member_map_"][member]
    if kind == "named":
        name, fields, items = value
        if type(items) is not tuple or len(items) != len(fields):
            raise ValueError("the fields of a named tuple")
        return named_tuples[name, fields](*items)
    raise ValueError(f"no object of kind {kind}")
