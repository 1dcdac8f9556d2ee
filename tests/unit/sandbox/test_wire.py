"""What passes between the two sides: values in their kind and with their aliases, or a refusal."""

import enum
import operator
import os
import re
import socket
import sys
import threading
from array import array
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.sandbox import frames, values, wire
from posttrain.sandbox.child import serve
from posttrain.sandbox.remote import NotPlain, Remote
from posttrain.sandbox.session import Session, over_channel
from posttrain.sandbox.wire import Common


def through(value: Any, **sides: Any) -> Any:
    """Return what the other side gets."""
    return wire.decode(Common(**sides), wire.encode(Common(**sides), value)[0])


# --- values ---------------------------------------------------------------------------------------

ZONES = st.none() | st.just(UTC) | st.just(timezone(timedelta(hours=9), "JST"))
ZONES |= st.sampled_from([ZoneInfo("Europe/Rome"), ZoneInfo("UTC")])
STANDARD = st.one_of(
    st.fractions(),
    st.decimals(allow_nan=False),
    st.dates(),
    st.times(timezones=ZONES),
    st.datetimes(timezones=ZONES),
    st.timedeltas(),
    st.uuids(),
    st.builds(range, st.integers(), st.integers(), st.integers(1, 5)),
    st.builds(slice, st.none() | st.integers(), st.integers(), st.none()),
    st.binary().map(memoryview),
    st.text("abc/.", max_size=5).map(PurePosixPath),
    st.text("abc/.", max_size=5).map(Path),
    st.sampled_from([int, str, list, Counter, Decimal, ValueError, datetime, type]),
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters(codec=None))
    | st.binary()
)
KEYS = SCALARS | st.tuples(SCALARS, SCALARS) | st.frozensets(SCALARS, max_size=3)
VALUES = st.recursive(
    KEYS | STANDARD,
    lambda v: st.one_of(
        st.lists(v),
        st.lists(st.integers(-(2**65), 2**65), min_size=5),
        st.lists(st.floats(allow_nan=False), min_size=5),
        st.lists(st.text(st.characters(codec=None)), min_size=5),
        st.lists(v).map(tuple),
        st.dictionaries(KEYS, v),
        st.sets(KEYS),
        st.frozensets(KEYS),
        st.lists(v).map(lambda x: deque(x, 3)),
        st.dictionaries(KEYS, v).map(OrderedDict),
        st.dictionaries(KEYS, v).map(lambda x: defaultdict(list, x)),
        st.text().map(Counter),
        st.binary().map(bytearray),
        st.lists(st.integers(-9, 9)).map(lambda x: array("h", x)),
    ),
)


def same(a: Any, b: Any) -> bool:
    """Equal in value, kind and order, at every depth."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        same_keys = all(map(same, a, b))
        return len(a) == len(b) and same_keys and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple, deque)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (set, frozenset)):
        return a == b and {(type(x), x) for x in a} == {(type(x), x) for x in b}
    if isinstance(a, (datetime, time)):
        return repr(a) == repr(b) and a == b
    return bool(a == b) and (repr(a) == repr(b) or isinstance(a, memoryview))


@given(VALUES)
@settings(max_examples=150, deadline=None)
def test_values_pass_unchanged_in_value_and_kind(value: Any) -> None:
    assert same(through(value), value)


@pytest.mark.slow
@given(VALUES)
@settings(max_examples=5000, deadline=None)
def test_many_values_pass_unchanged(value: Any) -> None:
    assert same(through(value), value)


SHAPES = [
    *(2**5000, -(2**63), 2**63 - 1, 0.1, float("inf"), True, 1, "\ud800", b"\0", ..., None),
    [2**63] * 6,
    [True] * 6,
    [1, True] * 6,
    ["", "\ud800"] * 6,
    {}.keys(),
    {1: 2}.keys(),
    {1: [2]}.items(),
    re.compile("a+", re.IGNORECASE),
    re.compile(b"a"),
    PureWindowsPath("a/b"),
    Decimal("sNaN123"),
    datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Rome")),
    UTC,
    deque([1], 3),
    defaultdict(None, {1: 2}),
    np.arange(6).reshape(2, 3),
    np.array(1.5, np.float32),
    np.zeros((0, 3), complex),
    np.array(["2024-01-01"], "datetime64[D]"),
]


@pytest.mark.parametrize("value", SHAPES, ids=lambda value: type(value).__name__)
def test_the_kind_of_a_value_is_kept(value: Any) -> None:
    found = through(value)
    assert type(found) is type(value)
    if isinstance(value, np.ndarray):
        assert (found.dtype, found.shape, found.tobytes()) == (
            *(value.dtype, value.shape),
            value.tobytes(),
        )
    else:
        assert repr(found) == repr(value)


def test_views_are_views() -> None:
    assert through({1: 2}.keys()) == {1}
    assert list(through({1: [2]}.values())) == [[2]]
    assert through(memoryview(b"ab")) == b"ab"


@pytest.mark.parametrize(
    "value",
    [
        memoryview(bytearray(b"ab")),
        memoryview(b"abcd").cast("i"),
        np.array([object()]),
        object(),
        len,
        iter([1]),
        (x for x in ()),
        sys,
        np.ma.array([1]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_pass_whole_is_refused(value: Any) -> None:
    with pytest.raises(wire.WireError, match="not a plain value"):
        wire.encode(Common(), value)


def test_instances_of_subclasses_are_not_taken_for_plain_values() -> None:
    class Mine(int):
        pass

    class Named(NamedTuple):
        a: int

    for value in (Mine(1), Named(1), enum.IntEnum("E", "A").A, type("D", (dict,), {})(a=1)):
        with pytest.raises(wire.WireError, match="not a plain value"):
            wire.encode(Common(), value)


def test_aliases_and_circles_stay() -> None:
    inner: list[Any] = [1]
    found = through({"a": inner, "b": (inner, [inner])})
    assert found["a"] is found["b"][0] is found["b"][1][0]
    circle: list[Any] = []
    circle.append({"me": circle})
    found = through(circle)
    assert found[0]["me"] is found
    deep: list[Any] = []
    for _ in range(20_000):
        deep = [deep]
    found, depth = through(deep), 0
    while found:
        found, depth = found[0], depth + 1
    assert depth == 20_000


def test_depth_and_size_are_bounded() -> None:
    nested: Any = ()
    for _ in range(wire.DEEPEST + 5):
        nested = (nested,)
    with pytest.raises(wire.WireError, match="nested more than 200 deep"):
        wire.encode(Common(), nested)
    with pytest.raises(wire.WireError):
        wire.decode(Common(), b"t*\0\0\0\1" * 10**5)
    read, write = os.pipe()
    os.write(write, b"\xff\xff\xff\xff")
    with pytest.raises(frames.TooLarge):
        frames.read_frame(read, 1 << 20)
    os.close(read)
    os.close(write)


@given(st.binary(max_size=200), st.data())
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_a_message_or_an_error(data: bytes, draw: st.DataObject) -> None:
    good, _ = wire.encode(Common(), [1, {"a": (2.5, {3}, date(2024, 1, 1))}, bytearray(b"x")])
    at = draw.draw(st.integers(0, len(good)))
    heads = [bytes([tag]) + data for tag in b"NTFEisfcbtz=kxo"]
    empty = wire.encode(Common(), None)[0][:-1]
    for attempt in [data, good[:at] + data, good[:at] + data + good[at:], *heads]:
        for whole in (attempt, empty + attempt):
            with suppress(wire.WireError):
                wire.decode(Common(), whole)


def test_a_class_of_the_sender_is_never_rebuilt() -> None:
    class Equal:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    for name in ("Counter", "int", "Fraction"):
        Equal.__name__ = Equal.__qualname__ = name
        Equal.__module__ = "fractions"
        assert values.standard_name(Equal) is None
        with pytest.raises(wire.WireError):
            wire.encode(Common(), Equal())


# --- shared objects -------------------------------------------------------------------------------


def linked() -> tuple[Common, Common]:
    return Common(), Common()


def test_changes_on_either_side_reach_the_other() -> None:
    here, there = linked()
    rows: list[Any] = [[1], {2: {3}}]
    copy = wire.decode(there, wire.encode(here, rows)[0])
    copy[0].append(copy)
    copy[1][2].clear()
    del copy[1][2]
    wire.decode(here, wire.encode(there, None)[0])
    assert rows[0] == [1, rows]
    assert rows[1] == {}
    rows[0][:] = [7]
    wire.decode(there, wire.encode(here, "nothing")[0])
    assert copy == [[7], {}]
    assert wire.decode(here, wire.encode(there, copy[0])[0]) is rows[0]


def test_an_object_that_one_side_gives_up_is_forgotten_by_the_other() -> None:
    here, there = Common(forgets=True), Common()
    for _ in range(50):
        wire.decode(there, wire.encode(here, ["only", ["here"]])[0])
    kept = wire.decode(there, wire.encode(here, [1])[0])
    assert len(here.objects) <= 3
    assert len(there.objects) <= 5
    assert kept == [1]


def test_a_message_that_cannot_be_sent_changes_nothing() -> None:
    here, there = Common(forgets=True), Common()
    known = [1]
    copy = wire.decode(there, wire.encode(here, known)[0])
    with pytest.raises(wire.WireError):
        wire.encode(here, [[2], object()])
    known.append(2)
    assert wire.decode(there, wire.encode(here, [known])[0])[0] is copy
    assert copy == [1, 2]


@dataclass
class Node:
    value: Any
    next: Any = None
    seen: list[Any] = field(default_factory=list)


class Slots:
    __slots__ = ("a",)


def test_instances_of_shared_classes_pass_by_their_attributes() -> None:
    here, there = (Common(classes={"Node": Node, "Slots": Slots}) for _ in range(2))
    first = Node(1, Node(2))
    first.next.next = first
    copy = wire.decode(there, wire.encode(here, first)[0])
    assert type(copy) is Node
    assert copy.next.next is copy
    copy.next.value, copy.extra = 7, [8]
    del copy.seen
    wire.decode(here, wire.encode(there, None)[0])
    assert (first.next.value, first.extra) == (7, [8])  # type: ignore[attr-defined]
    assert not hasattr(first, "seen")
    slots = Slots()
    slots.a = 5
    assert through(slots, classes={"Slots": Slots}).a == 5


def test_a_reply_cannot_set_special_attributes() -> None:
    here, there = (Common(classes={"Node": Node}) for _ in range(2))
    node = Node(1)
    copy = wire.decode(there, wire.encode(here, node)[0])
    copy.__dict__["__class__"] = int
    with pytest.raises(wire.WireError):
        wire.decode(here, wire.encode(there, None)[0])


# --- a session in this process --------------------------------------------------------------------


def session_of(program: str, *names: str) -> tuple[Session, dict[str, Any]]:
    """Load a program in a thread of this process, over a real channel."""
    here, there = (end.detach() for end in socket.socketpair())

    def candidate() -> None:
        def exchange(reply: bytes) -> bytes:
            frames.write_frame(there, reply)
            return frames.read_frame(there, 1 << 30)

        job = wire.decode(Common(), frames.read_frame(there, 1 << 30))
        with suppress(EOFError, OSError):
            serve(job, exchange)

    threading.Thread(target=candidate, daemon=True).start()
    session = Session(over_channel(here, 1 << 28))
    return session, session.load(program, list(names), {})


def test_derived_values_are_plain_here_and_themselves_there() -> None:
    program = """
import enum
class C(enum.IntEnum):
    A = 1
class P(tuple):
    def first(self): return self[0]
class L(list):
    def __eq__(self, other): return True
    def twice(self): return [*self, *self]
def f(kind): return {"enum": C.A, "tuple": P((1, 2)), "list": L([3])}[kind]
def same(x): return x is C.A
"""
    _, found = session_of(program, "f", "same", "C")
    member = found["f"]("enum")
    assert member == 1
    assert member != 2
    assert isinstance(member, int)
    assert member.name == "A"
    assert found["same"](member) is True
    assert type(member).__name__ == "C"
    assert str(member) == "1"
    assert repr(member) == "<C.A: 1>"
    pair = found["f"]("tuple")
    assert pair == (1, 2)
    assert pair != (1, 3)
    assert pair.first() == 1
    listed = found["f"]("list")
    assert listed == [3]
    assert listed != [4]
    assert isinstance(listed, list)
    assert listed.twice() == [3, 3]
    assert [*listed] == [3]
    assert len(listed) == 1


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "ge"])
def test_a_foreign_object_is_not_compared_with_a_plain_value(name: str) -> None:
    program = "class E:\n def __eq__(s, o): return True\n __lt__ = __ge__ = __ne__ = __eq__"
    session, found = session_of(program, "E")
    thing = found["E"]()
    for pair in ((thing, 1), (1, thing)):
        with pytest.raises(NotPlain):
            getattr(operator, name)(*pair)
    assert len(session.failures) == 2
    assert type(thing) is Remote


def test_a_named_tuple_of_the_tests_comes_back_as_itself() -> None:
    program = "def f(p): return p\ndef a(p): return p.x + p[1], p._replace(x=5)"
    _, found = session_of(program, "f", "a")
    kind = namedtuple("kind", "x y")
    assert type(found["f"](kind(1, 2))) is kind
    assert found["a"](kind(1, 2)) == (3, kind(5, 2))


def test_what_a_lent_function_offers() -> None:
    program = """
def use(f, x): return f(x)
def look(f): return f.__globals__
def look_public(f): return f.secret
def walk(items): return [x for x in items]
"""
    session, found = session_of(program, "use", "look", "look_public", "walk")
    calls: list[int] = []

    def mine(x: int) -> int:
        calls.append(x)
        return x + 1

    mine.secret = 3  # type: ignore[attr-defined]
    assert found["use"](mine, 4) == 5
    assert calls == [4]
    assert found["use"](len, [1, 2]) == 2
    assert found["use"](str.upper, "a") == "A"
    for name in ("look", "look_public"):
        with pytest.raises(AttributeError):
            found[name](mine)
    assert found["walk"](x * x for x in range(4)) == [0, 1, 4, 9]
    assert [type(error) for error in session.pending] == [AttributeError, AttributeError]


def test_large_results_pass_in_little_time() -> None:
    _, found = session_of("def f(n): return list(range(n)), [str(i) for i in range(n)]", "f")
    numbers, texts = found["f"](10**6)
    assert numbers[-1] == 10**6 - 1
    assert texts[-1] == "999999"
