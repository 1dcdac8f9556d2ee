"""What may pass between a candidate's process and the trusted side: plain values, and nothing else.

One binary form serves both directions. `decode` builds plain values only, whatever the bytes are:
no pickle, no class of the sender, no unbounded depth. Both sides run this file; it reaches the
sandbox over the channel, so it imports nothing beyond the standard library.

An object that is not plain (an instance of the candidate's own class, a function, a generator)
stays where it is; a number that the sender gave it is sent in its place.
"""

import os
import struct
import sys
from collections.abc import Callable
from typing import Any

DEEPEST = 100

# Types of the standard library that are rebuilt from plain arguments: name -> (module, attributes
# that the sender reads, in the order of the constructor's arguments).
REBUILT: dict[str, tuple[str, Callable[[Any], tuple[Any, ...]]]] = {
    "range": ("builtins", lambda x: (x.start, x.stop, x.step)),
    "bytearray": ("builtins", lambda x: (bytes(x),)),
    "Counter": ("collections", lambda x: (dict(x),)),
    "OrderedDict": ("collections", lambda x: (list(x.items()),)),
    "deque": ("collections", lambda x: (list(x), x.maxlen)),
    "array": ("array", lambda x: (x.typecode, x.tolist())),
    "Fraction": ("fractions", lambda x: (x.numerator, x.denominator)),
    "Decimal": ("decimal", lambda x: (str(x),)),
    "date": ("datetime", lambda x: (x.year, x.month, x.day)),
    "time": ("datetime", lambda x: (x.hour, x.minute, x.second, x.microsecond)),
    "datetime": (
        "datetime",
        lambda x: (x.year, x.month, x.day, x.hour, x.minute, x.second, x.microsecond),
    ),
    "timedelta": ("datetime", lambda x: (x.days, x.seconds, x.microseconds)),
}
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "range": (int, int, int),
    "bytearray": (bytes,),
    "Counter": (dict,),
    "OrderedDict": (list,),
    "deque": (list, (int, type(None))),
    "array": (str, list),
    "Fraction": (int, int),
    "Decimal": (str,),
    "date": (int,) * 3,
    "time": (int,) * 4,
    "datetime": (int,) * 7,
    "timedelta": (int,) * 3,
}
_CONTAINERS: dict[type, bytes] = {list: b"l", tuple: b"t", set: b"S", frozenset: b"Z"}
_BUILT: dict[bytes, type] = {tag: kind for kind, tag in _CONTAINERS.items()}
# Types themselves may be passed, as in convert(x, str).
_PASSABLE = (bool, int, float, complex, str, bytes, list, tuple, set, dict)
_TYPES: dict[str, type] = {kind.__name__: kind for kind in _PASSABLE}
_BASES = (int, float, complex, str, bytes, list, tuple, set, frozenset, dict)


class WireError(ValueError):
    """Bytes that do not follow this file's rules, or a value that cannot be sent."""


class TooLarge(ValueError):
    """A message above the limit."""


def encode(value: Any, refer: Callable[[Any], int]) -> bytes:
    """Return the bytes of a value.

    Args:
        value: A plain value; an instance of a subclass of a plain type is sent as that plain type.
        refer: Returns the number of any other object, or raises.

    Raises:
        WireError: The value is nested more than `DEEPEST` deep (or contains itself).
    """
    parts: list[bytes] = []
    _encode(value, refer, parts, 0)
    return b"".join(parts)


def _encode(value: Any, refer: Callable[[Any], int], parts: list[bytes], depth: int) -> None:
    if depth > DEEPEST:
        raise WireError(f"a value nested more than {DEEPEST} deep, or one that contains itself")
    kind: type = type(value)
    if value is None or kind is bool:
        parts.append({None: b"N", True: b"T", False: b"F"}[value])
    elif kind is int:
        size = value.bit_length() // 8 + 1
        parts.append(b"i" + struct.pack(">I", size) + value.to_bytes(size, "big", signed=True))
    elif kind is float:
        parts.append(b"f" + struct.pack(">d", value))
    elif kind is complex:
        parts.append(b"c" + struct.pack(">dd", value.real, value.imag))
    elif kind is str:
        text = value.encode("utf-8", "surrogatepass")
        parts.append(b"s" + struct.pack(">I", len(text)) + text)
    elif kind is bytes:
        parts.append(b"b" + struct.pack(">I", len(value)) + value)
    elif kind in _CONTAINERS:
        parts.append(_CONTAINERS[kind] + struct.pack(">I", len(value)))
        for item in value:
            _encode(item, refer, parts, depth + 1)
    elif kind is dict:
        parts.append(b"d" + struct.pack(">I", len(value)))
        for pair in value.items():
            _encode(pair[0], refer, parts, depth + 1)
            _encode(pair[1], refer, parts, depth + 1)
    elif kind is type and value in _PASSABLE:
        name = value.__name__.encode()
        parts.append(b"k" + struct.pack(">I", len(name)) + name)
    elif kind.__name__ in REBUILT and _is_standard(kind):
        name = kind.__name__.encode()
        parts.append(b"x" + struct.pack(">I", len(name)) + name)
        _encode(REBUILT[kind.__name__][1](value), refer, parts, depth + 1)
    else:
        for base in _BASES:
            if isinstance(value, base):  # a named tuple, an IntEnum, a defaultdict
                _encode(_as_base(base, value), refer, parts, depth)
                return
        parts.append(b"r" + struct.pack(">I", refer(value)))


def _as_base(base: type, value: Any) -> Any:
    """Return `value` as its plain base type, by that type's own methods."""
    if base is int:
        return int.__index__(value)
    if base is float:
        return float.__float__(value)
    if base is complex:
        return complex(value.real, value.imag)
    if base is str:
        return str.__str__(value)
    if base is dict:
        return dict(dict.items(value))
    return base(list(base.__iter__(value)))  # type: ignore[attr-defined]


def _is_standard(kind: type) -> bool:
    """Whether a class is the one of the standard library, not another one of that name."""
    module = sys.modules.get(REBUILT[kind.__name__][0])
    return module is not None and vars(module).get(kind.__name__) is kind


def decode(data: bytes, resolve: Callable[[int], Any]) -> Any:
    """Return the value that `data` encodes; `resolve` returns what stands for an object's number.

    Raises:
        WireError: The bytes are not exactly one value in this form.
    """
    try:
        value, end = _decode(data, 0, resolve, 0)
    except WireError:
        raise
    except Exception as error:  # truncated bytes, an unhashable key, a date that does not exist
        raise WireError(f"not a value: {type(error).__name__}") from None
    if end != len(data):
        raise WireError("bytes after the value")
    return value


def _decode(data: bytes, at: int, resolve: Callable[[int], Any], depth: int) -> tuple[Any, int]:
    if depth > DEEPEST + 1:
        raise WireError("nested too deep")
    tag = data[at : at + 1]
    at += 1
    if tag in (b"N", b"T", b"F"):
        return {b"N": None, b"T": True, b"F": False}[tag], at
    if tag == b"f":
        return struct.unpack_from(">d", data, at)[0], at + 8
    if tag == b"c":
        return complex(*struct.unpack_from(">dd", data, at)), at + 16
    (size,) = struct.unpack_from(">I", data, at)
    at += 4
    if tag == b"r":
        return resolve(size), at
    if tag in (b"i", b"s", b"b", b"k", b"x"):
        raw = data[at : at + size]
        if len(raw) != size:
            raise WireError("truncated")
        at += size
        if tag == b"i":
            return int.from_bytes(raw, "big", signed=True), at
        if tag == b"s":
            return raw.decode("utf-8", "surrogatepass"), at
        if tag == b"b":
            return raw, at
        if tag == b"k":
            return _TYPES[raw.decode()], at
        arguments, at = _decode(data, at, resolve, depth + 1)
        return _rebuild(raw.decode(), arguments), at
    if tag == b"d":
        pairs = {}
        for _ in range(size):
            key, at = _decode(data, at, resolve, depth + 1)
            pairs[key], at = _decode(data, at, resolve, depth + 1)
        return pairs, at
    items = []
    kind = _BUILT[tag]
    for _ in range(size):
        item, at = _decode(data, at, resolve, depth + 1)
        items.append(item)
    return (items if kind is list else kind(items)), at


def _rebuild(name: str, arguments: Any) -> Any:
    module = __import__(REBUILT[name][0])
    kinds = _ARGUMENTS[name]
    if type(arguments) is not tuple or len(arguments) != len(kinds):
        raise WireError(f"wrong arguments of {name}")
    for argument, kind in zip(arguments, kinds):
        if not isinstance(argument, kind):
            raise WireError(f"wrong arguments of {name}")
    return vars(module)[name](*arguments)


def write_frame(fd: int, data: bytes) -> None:
    """Send one message; raise OSError if the other side is gone."""
    view = memoryview(struct.pack(">I", len(data)) + data)
    while view:
        view = view[os.write(fd, view) :]


def read_frame(fd: int, limit: int) -> bytes:
    """Receive one message.

    Raises:
        EOFError: The other side is gone.
        TooLarge: The message has more than `limit` bytes.
    """
    (size,) = struct.unpack(">I", _read(fd, 4))
    if size > limit:
        raise TooLarge(f"a message of {size} bytes; the limit is {limit}")
    return _read(fd, size)


def _read(fd: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
