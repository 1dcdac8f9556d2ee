"""Immutable values of the standard library that may pass between the two sides, and types by name.

Each is read as a tuple of plainer values and built again from it. Both sides run this file; it
reaches the sandbox over the channel, so it imports nothing beyond the standard library.
"""

import builtins
import importlib
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple


class Standard(NamedTuple):
    """How the values of one class are carried."""

    read: Callable[[Any], tuple[Any, ...] | None]
    """Return the parts of a value; None if this value cannot be carried."""
    parts: tuple[Any, ...]
    """The classes that the parts must have."""
    build: Callable[..., Any] = lambda kind, *parts: kind(*parts)
    """Return the value, given its class and its parts."""


def _zone(x: Any) -> bool:
    """Whether the time zone of a time is one that can be carried."""
    zones = ("datetime.timezone", "zoneinfo.ZoneInfo")
    kind: Any = type(x.tzinfo)
    return x.tzinfo is None or standard_name(kind) in zones


def _read_time(x: Any) -> tuple[Any, ...] | None:
    if not _zone(x):
        return None
    return (x.hour, x.minute, x.second, x.microsecond, x.fold, x.tzinfo)


def _read_datetime(x: Any) -> tuple[Any, ...] | None:
    return (x.year, x.month, x.day, *_read_time(x)) if _zone(x) else None  # type: ignore[misc]


def _read_zone(x: Any) -> tuple[Any, ...]:
    arguments = x.__getinitargs__()
    return (*arguments, None)[:2]


_TIME = (int, int, int, int, int, object)
STANDARD: dict[str, Standard] = {
    "builtins.range": Standard(lambda x: (x.start, x.stop, x.step), (int, int, int)),
    "builtins.slice": Standard(lambda x: (x.start, x.stop, x.step), (object,) * 3),
    "builtins.memoryview": Standard(
        lambda x: (bytes(x),) if x.format == "B" and x.ndim == 1 and x.readonly else None, (bytes,)
    ),
    "builtins.dict_keys": Standard(
        lambda x: (tuple(x),), (tuple,), lambda kind, x: dict.fromkeys(x).keys()
    ),
    "builtins.dict_values": Standard(
        lambda x: (tuple(x),), (tuple,), lambda kind, x: dict(enumerate(x)).values()
    ),
    "builtins.dict_items": Standard(
        lambda x: (tuple(x),), (tuple,), lambda kind, x: dict(x).items()
    ),
    "fractions.Fraction": Standard(lambda x: (x.numerator, x.denominator), (int, int)),
    "decimal.Decimal": Standard(lambda x: (str(x),), (str,)),
    "datetime.date": Standard(lambda x: (x.year, x.month, x.day), (int, int, int)),
    "datetime.time": Standard(
        _read_time, _TIME, lambda kind, *p: kind(*p[:4], tzinfo=p[5], fold=p[4])
    ),
    "datetime.datetime": Standard(
        _read_datetime,
        (int, int, int, *_TIME),
        lambda kind, *p: kind(*p[:7], tzinfo=p[8], fold=p[7]),
    ),
    "datetime.timedelta": Standard(lambda x: (x.days, x.seconds, x.microseconds), (int, int, int)),
    "datetime.timezone": Standard(
        _read_zone,
        (object, (str, type(None))),
        lambda kind, offset, name: kind(offset) if name is None else kind(offset, name),
    ),
    "zoneinfo.ZoneInfo": Standard(lambda x: (x.key,) if x.key else None, (str,)),
    "uuid.UUID": Standard(lambda x: (x.int,), (int,), lambda kind, n: kind(int=n)),
    "pathlib.PurePosixPath": Standard(lambda x: (str(x),), (str,)),
    "pathlib.PosixPath": Standard(lambda x: (str(x),), (str,)),
    "pathlib.PureWindowsPath": Standard(lambda x: (str(x),), (str,)),
    "re.Pattern": Standard(
        lambda x: (x.pattern, x.flags),
        ((str, bytes), int),
        lambda kind, pattern, flags: importlib.import_module("re").compile(pattern, flags),
    ),
}
_VIEWS: dict[type, str] = {
    type({}.keys()): "builtins.dict_keys",
    type({}.values()): "builtins.dict_values",
    type({}.items()): "builtins.dict_items",
}
# Classes besides these that may be passed themselves, as in convert(x, Counter).
_PASSABLE = (
    *("collections.Counter", "collections.OrderedDict", "collections.deque"),
    *("collections.defaultdict", "array.array", "types.NoneType", "types.EllipsisType"),
)


@cache
def standard_name(kind: type) -> str | None:
    """Return the key of a class in `STANDARD`; None if it is not the library's own class."""
    if kind in _VIEWS:
        return _VIEWS[kind]
    name = qualified_name(kind)
    return name if name in STANDARD else None


def qualified_name(kind: type) -> str | None:
    """Return "module.Class" if the loaded module of that name has exactly this class."""
    module = str(kind.__module__).split(".")[0]
    found = vars(sys.modules.get(module, builtins)).get(kind.__name__)
    return f"{module}.{kind.__name__}" if found is kind else None


def build(name: str, parts: Any) -> Any:
    """Return the value of class `name` with these parts; raise ValueError if they do not fit."""
    entry = STANDARD[name]
    if type(parts) is not tuple or len(parts) != len(entry.parts):
        raise ValueError(f"wrong parts of {name}")
    if not all(isinstance(part, kind) for part, kind in zip(parts, entry.parts)):
        raise ValueError(f"wrong parts of {name}")
    module, _, last = name.rpartition(".")
    return entry.build(vars(importlib.import_module(module)).get(last), *parts)


def type_name(kind: type) -> str | None:
    """Return the name by which a class of Python's own is passed; None for any other class."""
    if vars(builtins).get(kind.__name__) is kind:
        return f"builtins.{kind.__name__}"
    if kind in (type(None), type(...)):
        return "types.NoneType" if kind is type(None) else "types.EllipsisType"
    name = qualified_name(kind)
    return name if name in STANDARD or name in _PASSABLE else None


def type_named(name: str) -> type:
    """Return the class that `type_name` gave this name; raise ValueError if there is none."""
    module, _, last = name.rpartition(".")
    if module != "builtins" and name not in STANDARD and name not in _PASSABLE:
        raise ValueError(f"no class {name}")
    kind = vars(importlib.import_module(module)).get(last)
    if not isinstance(kind, type):
        raise ValueError(f"no class {name}")
    return kind
