"""What may pass between a candidate's process and the trusted side: plain values, and nothing else.

One binary form serves both directions. `decode` builds plain values only, whatever the bytes are:
no pickle, no class of the sender, no unbounded depth. Both sides run this file; it reaches the
sandbox over the channel, so it imports nothing beyond the standard library.

Mutable values (lists, dicts, ...) are shared: both sides hold one object each under one number, and
each message carries the content of those that changed since the last one. So an argument that a
function changes is changed in the test too, with all its aliases, and a result that is part of an
argument is that very object. An object that is not plain (an instance of the candidate's own class,
a function, a generator) stays where it is; what `Common.refer` says of it is sent in its place.
"""

import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from posttrain.sandbox.containers import CONTAINERS, container_of
from posttrain.sandbox.shared import Common, WireError, drop
from posttrain.sandbox.values import STANDARD, build, standard_name, type_name, type_named

DEEPEST = 200  # of tuples in tuples; lists and dicts may be nested without limit


# --- writing --------------------------------------------------------------------------------------


class _Outgoing:
    """A message being written."""

    new: list[tuple[str, Any]]
    """(name of the container, object) of objects to be shared from now on."""
    met: list[int]
    """Numbers of shared objects in what is being written."""

    def __init__(self, common: Common) -> None:
        self.common = common
        self.new, self.met = [], []
        self.new_numbers: dict[int, int] = {}

    def number_of(self, name: str, thing: Any) -> int:
        number = self.common.numbers.get(id(thing))
        if number is None:
            number = self.new_numbers.get(id(thing))
        if number is None:
            number = self.common.next + len(self.new)
            self.new.append((name, thing))
            self.new_numbers[id(thing)] = number
        self.met.append(number)
        return number

    def content(self, name: str, thing: Any) -> tuple[bytes, list[int]]:
        """Return the content of a shared object, and the numbers of the objects in it."""
        self.met = []
        parts: list[bytes] = []
        _put(CONTAINERS[name].read(thing), parts, self, 0)
        return b"".join(parts), self.met


def encode(common: Common, value: Any) -> tuple[bytes, list[int]]:
    """Return a message, and the numbers of the shared objects that its value holds directly.

    Raises:
        WireError: The value has tuples nested more than `DEEPEST` deep, or in a circle.
    """
    out = _Outgoing(common)
    body: list[bytes] = []
    _put(value, body, out, 0)
    direct = out.met
    records: dict[int, tuple[bytes, list[int]]] = {}
    for number, thing in common.objects.items():
        name = container_of(thing, common.classes)
        assert name is not None
        content = out.content(name, thing)
        if content[0] != common.contents[number]:
            records[number] = content
    if common.forgets:
        # what has changed is sent first: a test may change an object through its owner alone
        _forget(common, {*records, *direct})
    done = 0
    while done < len(out.new):
        records[common.next + done] = out.content(*out.new[done])
        done += 1
    head: list[bytes] = []
    kinds = tuple((name, *CONTAINERS[name].settings(thing)) for name, thing in out.new)
    _put((tuple(common.dropped), kinds), head, out, 0)
    common.dropped.clear()
    parts = [struct.pack(">I", len(records))]
    for number, (content_, met) in records.items():
        parts += [struct.pack(">II", number, len(content_)), content_]
        common.contents[number], common.parts[number] = content_, met
    for i, (_, thing) in enumerate(out.new):
        common.objects[common.next + i] = thing
        common.numbers[id(thing)] = common.next + i
    common.next += len(out.new)
    return b"".join([*head, *parts, *body]), direct


def _forget(common: Common, kept: set[int]) -> None:
    """Give up the shared objects that nothing else on this side refers to, except `kept`."""
    for number in common.objects.keys() - kept:
        thing = common.objects[number]
        # the dict, the local name and the argument
        if sys.getrefcount(thing) <= 3:
            common.dropped.append(number)
            drop(common, number)


def _put_int(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"i" + struct.pack(">I", size) + value.to_bytes(size, "big", signed=True)


def _put_str(value: str) -> bytes:
    text = value.encode("utf-8", "surrogatepass")
    return b"s" + struct.pack(">I", len(text)) + text


_SIMPLE: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda x: b"N",
    bool: lambda x: b"T" if x else b"F",
    type(...): lambda x: b"E",
    int: _put_int,
    str: _put_str,
    float: lambda x: b"f" + struct.pack(">d", x),
    complex: lambda x: b"c" + struct.pack(">dd", x.real, x.imag),
    bytes: lambda x: b"b" + struct.pack(">I", len(x)) + x,
}


def _put(value: Any, parts: list[bytes], out: _Outgoing, depth: int) -> None:
    if depth > DEEPEST:
        raise WireError(f"a value nested more than {DEEPEST} deep, or one that contains itself")
    kind: type = type(value)
    if (simple := _SIMPLE.get(kind)) is not None:
        parts.append(simple(value))
    elif kind is tuple:
        parts.append(b"t")
        _put_items(value, parts, out, depth)
    elif kind is frozenset:
        items = []
        for item in value:
            own: list[bytes] = []
            _put(item, own, out, depth + 1)
            items.append(b"".join(own))
        # in an order that does not depend on the process
        parts.append(b"z" + struct.pack(">I", len(items)) + b"".join(sorted(items)))
    elif (name := container_of(value, out.common.classes)) is not None:
        if name in out.common.refused:
            raise WireError(f"{kind.__name__} is not in the sandbox")
        parts.append(b"=" + struct.pack(">I", out.number_of(name, value)))
    elif (name := standard_name(kind)) is not None and (
        (found := STANDARD[name].read(value)) is not None
    ):
        parts.append(b"x" + _put_str(name))
        _put(found, parts, out, depth + 1)
    elif kind is type and (name := type_name(value)) is not None:
        parts.append(b"k" + _put_str(name))
    else:
        reference, description = out.common.refer(value)
        parts.append(b"o" + _put_str(reference))
        _put(description, parts, out, depth + 1)


def _put_items(items: Sequence[Any], parts: list[bytes], out: _Outgoing, depth: int) -> None:
    """Write a sequence; numbers, truth values and texts alone go in one piece."""
    kinds = set(map(type, items)) if len(items) > 4 else ()
    packed = _PACKED.get(next(iter(kinds))) if len(kinds) == 1 else None
    if packed is not None:
        try:
            parts.append(packed(items))
            return
        except OverflowError:  # an int of more than 8 bytes
            pass
    parts.append(b"*" + struct.pack(">I", len(items)))
    for item in items:
        _put(item, parts, out, depth + 1)


def _pack_numbers(tag: bytes, code: str) -> Callable[[Sequence[Any]], bytes]:
    return lambda x: tag + struct.pack(">I", len(x)) + array(code, x).tobytes()


def _pack_texts(texts: Sequence[str]) -> bytes:
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    sizes = array("Q", map(len, encoded))
    return b"S" + struct.pack(">I", len(encoded)) + sizes.tobytes() + b"".join(encoded)


_PACKED: dict[type, Callable[[Sequence[Any]], bytes]] = {
    int: _pack_numbers(b"I", "q"),
    float: _pack_numbers(b"D", "d"),
    bool: lambda x: b"B" + struct.pack(">I", len(x)) + bytes(x),
    str: _pack_texts,
}


# --- reading --------------------------------------------------------------------------------------


class _Incoming:
    """A message being read."""

    def __init__(self, common: Common, data: bytes) -> None:
        self.common, self.data = common, data
        self.at = 0
        self.met: list[int] = []

    def take(self, size: int) -> bytes:
        raw = self.data[self.at : self.at + size]
        if len(raw) != size:
            raise WireError("truncated")
        self.at += size
        return raw

    def count(self) -> int:
        number: int = struct.unpack(">I", self.take(4))[0]
        return number


def decode(common: Common, data: bytes) -> Any:
    """Return the value of a message, after bringing the shared objects up to date.

    Raises:
        WireError: The bytes are not exactly one message in this form.
    """
    try:
        return _decode(common, data)
    except WireError:
        raise
    except Exception as error:  # truncated bytes, an unhashable key, a date that does not exist
        raise WireError(f"not a value: {type(error).__name__}") from None


def _decode(common: Common, data: bytes) -> Any:
    message = _Incoming(common, data)
    forgotten, kinds = _get(message, 0)
    for name, *settings in kinds:
        thing = CONTAINERS[name].create(common.classes, *settings)
        common.objects[common.next] = thing
        common.numbers[id(thing)] = common.next
        common.contents[common.next] = _Outgoing(common).content(name, thing)[0]
        common.parts[common.next] = []
        common.next += 1
    refills = []
    for _ in range(message.count()):
        number, size = message.count(), message.count()
        thing = common.objects[number]
        name_ = container_of(thing, common.classes)
        assert name_ is not None
        refills.append((CONTAINERS[name_], number, thing, message.take(size)))
    # The hash of an instance may need its attributes; that of an object which stays on the other
    # side is asked for, and what is not filled yet must not look changed then.
    for container, number, thing, content in sorted(refills, key=lambda refill: refill[0].hashes):
        inner = _Incoming(common, content)
        container.fill(thing, *_get(inner, 0))
        common.contents[number], common.parts[number] = content, inner.met
    value = _get(message, 0)
    if message.at != len(data):
        raise WireError("bytes after the value")
    for number in forgotten:
        drop(common, number)
    return value


def content_of(common: Common, number: int) -> bytes | None:
    """Return the present content of a shared object; None if it is no longer shared."""
    thing = common.objects.get(number)
    if number not in common.objects:
        return None
    name = container_of(thing, common.classes)
    assert name is not None
    return _Outgoing(common).content(name, thing)[0]


def refill(common: Common, number: int, content: bytes) -> None:
    """Give a shared object a content that was exchanged before."""
    thing = common.objects[number]
    name = container_of(thing, common.classes)
    assert name is not None
    CONTAINERS[name].fill(thing, *_get(_Incoming(common, content), 0))


def _get(message: _Incoming, depth: int) -> Any:
    if depth > DEEPEST + 2:
        raise WireError("nested too deep")
    tag = message.take(1)
    match tag:
        case b"N" | b"T" | b"F" | b"E":
            return {b"N": None, b"T": True, b"F": False, b"E": ...}[tag]
        case b"i":
            return int.from_bytes(message.take(message.count()), "big", signed=True)
        case b"s":
            return message.take(message.count()).decode("utf-8", "surrogatepass")
        case b"f":
            return struct.unpack(">d", message.take(8))[0]
        case b"c":
            return complex(*struct.unpack(">dd", message.take(16)))
        case b"b":
            return message.take(message.count())
        case b"t":
            return _get_items(message, depth)
        case b"z":
            return frozenset([_get(message, depth + 1) for _ in range(message.count())])
        case b"=":
            number = message.count()
            message.met.append(number)
            return message.common.objects[number]
        case b"k":
            return type_named(_get(message, depth + 1))
        case b"x":
            name = _get(message, depth + 1)
            return build(name, _get(message, depth + 1))
        case b"o":
            reference = _get(message, depth + 1)
            return message.common.resolve(reference, _get(message, depth + 1))
    raise WireError("an unknown tag")


def _get_items(message: _Incoming, depth: int) -> tuple[Any, ...]:
    tag, count = message.take(1), message.count()
    if tag == b"*":
        return tuple([_get(message, depth + 1) for _ in range(count)])
    if tag in (b"I", b"D"):
        numbers = array("q" if tag == b"I" else "d")
        numbers.frombytes(message.take(8 * count))
        return tuple(numbers)
    if tag == b"B":
        return tuple(map(bool, message.take(count)))
    if tag == b"S":
        sizes = array("Q")
        sizes.frombytes(message.take(8 * count))
        return tuple([message.take(size).decode("utf-8", "surrogatepass") for size in sizes])
    raise WireError("an unknown tag")
