"""The trusted side of the channel: stand-ins for the candidate's functions and objects.

A call of a stand-in sends the arguments and returns a plain value that this process built itself.
Nothing that the candidate's process reports about itself is believed: a reply that is not exactly
the answer to the pending call ends the candidate.
"""

import operator
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from posttrain.sandbox.lending import Unsendable, lend, perform_lent, resolve_lent
from posttrain.sandbox.operations import ARITHMETIC, COMPARISONS, UNARY, plain_value
from posttrain.sandbox.raised import exception_of
from posttrain.sandbox.wire import (
    Common,
    TooLarge,
    WireError,
    content_of,
    decode,
    encode,
    read_frame,
    refill,
    write_frame,
)


class CandidateGone(Exception):
    """The candidate's process has ended; every further call raises this too."""


class NotPlain(Exception):
    """The test used an object of the candidate in a way that only plain values allow."""


@dataclass
class Session:
    """One candidate and the channel to it."""

    exchange: Callable[[bytes], bytes]
    """Sends a message and returns the next; raises EOFError, OSError or TooLarge."""
    nonce: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    number: int = 0
    """Number of the next message from the candidate."""
    gone: str | None = None
    """The verdict, once the candidate cannot answer any more; no test can undo it."""
    pending: list[BaseException] = field(default_factory=list)
    """What the candidate raised and no test has asked for by name."""
    failures: list[BaseException] = field(default_factory=list)
    """Refusals of this file, and failed assertions in functions that the candidate was lent."""
    earlier: dict[int, bytes] = field(default_factory=dict)
    """By number: the contents that arguments had when a call that returned a value changed them."""
    objects: dict[int, "Remote"] = field(default_factory=dict)
    """Stand-ins by the candidate's number of the object."""
    derived: dict[int, type] = field(default_factory=dict)
    """Classes that stand for the candidate's subclasses of plain classes, by its number."""
    named_tuples: dict[tuple[Any, ...], type] = field(default_factory=dict)
    """Classes of named tuples that the tests passed, by name and fields."""
    lent: dict[int, Any] = field(default_factory=dict)
    """Functions, iterators and objects that the tests passed, by their number."""
    common: Common = field(init=False)

    def __post_init__(self) -> None:
        self.common = Common(
            lambda thing: _refer(self, thing),
            lambda kind, value: _resolve(self, kind, value),
            refused=("ndarray",),
            forgets=True,
        )

    def load(
        self,
        program: str,
        names: list[str],
        limits: dict[str, int],
        definitions: str = "",
        classes: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """Run a program of functions, and return what it defines of `names`.

        Args:
            program: The candidate's program.
            names: Names that the tests use and leave to the program.
            limits: Limits that its process sets on itself.
            definitions: Code that runs before the program: classes that the tests define as well.
            classes: Names of classes whose instances pass by their attributes.

        Raise what the program raised, as an exception of this process.
        """
        job = {
            "mode": "functions",
            "program": program,
            "names": names,
            "nonce": self.nonce,
            "limits": limits,
            "definitions": definitions,
            "classes": classes,
        }
        defined = self._talk(encode(Common(), job)[0])
        if type(defined) is not dict:
            self.gone = "protocol"
            raise CandidateGone("the answer to loading is not a dict")
        # no other name: the candidate must not define what else the tests call
        return {name: defined[name] for name in names if name in defined}

    def ask(self, operation: str, *operands: Any) -> Any:
        """Return the value of an operation (`operations.py`), or raise what the candidate raised.

        An exception is pending until the test asks for it (`asked`).
        """
        if self.gone is not None:
            raise CandidateGone(self.gone)
        try:
            message, direct = encode(self.common, ("do", operation, operands))
        except WireError as error:
            raise Unsendable(str(error)) from None
        for number in self.common.reachable(direct):
            self.earlier.pop(number, None)
        sent = dict(self.common.contents)
        value = self._talk(message)
        if value is not None and operation == "call":
            self._note_changes(sent)
        return value

    def _note_changes(self, sent: dict[int, bytes]) -> None:
        for number, content in sent.items():
            if self.common.contents.get(number, content) != content:
                self.earlier[number] = content

    def _talk(self, message: bytes) -> Any:
        """Send a message; lend what the candidate asks for until it answers."""
        while True:
            match self._receive(message):
                case ("value", value):
                    return value
                case ("error", names, arguments, text, thing) if _are(
                    (tuple, tuple, str), names, arguments, text
                ):
                    error = exception_of(names, arguments, text, thing)
                    self.pending.append(error)
                    raise error
                case ("ask", number, operation, operands) if _are(
                    (int, str, tuple), number, operation, operands
                ):
                    message = self._serve(number, operation, operands)
                case _:
                    self.gone = "protocol"
                    raise CandidateGone("a reply that answers no call")

    def _receive(self, message: bytes) -> tuple[Any, ...]:
        if self.gone is not None:
            raise CandidateGone(self.gone)
        try:
            reply = decode(self.common, self.exchange(message))
        except (EOFError, OSError):
            self.gone = "died"
            raise CandidateGone("the candidate's process ended") from None
        except TooLarge as error:
            self.gone = "output"
            raise CandidateGone(str(error)) from None
        except WireError as error:
            self.gone = "protocol"
            raise CandidateGone(f"not a reply: {error}") from None
        match reply:
            case (nonce, number, *rest) if type(reply) is tuple and _are(
                (bytes, int), nonce, number
            ):
                if (nonce, number) == (self.nonce, self.number):
                    self.number += 1
                    return tuple(rest)
        self.gone = "protocol"
        raise CandidateGone("a reply that answers no call")

    def _serve(self, number: int, operation: str, operands: tuple[Any, ...]) -> bytes:
        """Use a function or object of the tests for the candidate; return the message about it."""
        try:
            value = perform_lent(self.lent[number], operation, operands)
            return encode(self.common, ("value", value))[0]
        except CandidateGone:
            raise
        except BaseException as error:
            if isinstance(error, AssertionError) and error not in self.pending:
                self.failures.append(error)  # the candidate cannot swallow what a test asserts
            return encode(self.common, ("error", *_builtin(error)))[0]

    def asked(self, error: BaseException | None) -> None:
        """Take an exception of the candidate as the one that the test asks for."""
        self.pending = [other for other in self.pending if other is not error]

    def as_passed(self, compute: Callable[[], Any]) -> Any:
        """Return a value that is computed from arguments as they were passed to the candidate.

        A call that changes its arguments and returns a value must not choose by that what its value
        is compared with.
        """
        # the test may have changed one itself since
        now = {
            number: content
            for number in self.earlier
            if (content := content_of(self.common, number)) == self.common.contents.get(number, 0)
        }
        if not now:
            return compute()
        import copy

        for number in now:
            refill(self.common, number, self.earlier[number])
        try:
            value = compute()
            return copy.deepcopy(value) if isinstance(value, _COPIED) else value
        finally:
            for number, content in now.items():
                refill(self.common, number, content)


_COPIED = (list, tuple, dict, set, frozenset, bytearray)


def _are(kinds: tuple[type, ...], *values: Any) -> bool:
    """Whether values are of exactly these classes; a stand-in may pass for one in isinstance."""
    return all(type(value) is kind for value, kind in zip(values, kinds, strict=True))


def _builtin(error: BaseException) -> tuple[str, str]:
    """Return the name of the nearest class of Python's own, and the text."""
    return next(k.__name__ for k in type(error).__mro__ if k.__module__ == "builtins"), str(error)


def over_channel(channel: int, largest: int) -> Callable[[bytes], bytes]:
    """Return the `exchange` of a session over a channel, with replies of at most `largest` bytes."""

    def exchange(message: bytes) -> bytes:
        write_frame(channel, message)
        return read_frame(channel, largest)

    return exchange


# --- references -----------------------------------------------------------------------------------


def _refer(session: Session, thing: Any) -> tuple[str, Any]:
    if type(thing) is Remote:
        return "remote", (thing._number, thing._base)
    number = getattr(type(thing), "_candidate_class", None)
    if number is not None:
        stand_in = thing._stand_in
        label = (stand_in._number, number, type(thing).__name__, stand_in._base)
        return "derived", (*label, plain_value(thing))
    return lend(session.lent, session.named_tuples, session.common.classes, thing)


def _resolve(session: Session, kind: str, value: Any) -> Any:
    match kind, value:
        case "remote", (number, base) if _are((int, str), number, base):
            stand_in = session.objects.get(number)
            if stand_in is None:
                stand_in = session.objects[number] = Remote(session, number, base)
            return _awaited(stand_in) if base == "coroutine" else stand_in
        case "derived", (number, class_number, name, base, plain) if _are(
            (int, int, str, str), number, class_number, name, base
        ):
            stand_in = session.objects.setdefault(number, Remote(session, number, base))
            return _derived(session, stand_in, class_number, name, base, plain)
    return resolve_lent(session.lent, session.named_tuples, session.common.classes, kind, value)


async def _awaited(stand_in: "Remote") -> Any:
    return stand_in._session.ask("await", stand_in)


def _derived(
    session: Session, stand_in: "Remote", number: int, name: str, base: str, plain: Any
) -> Any:
    """Return a value of an immutable plain class, of a class that stands for the candidate's."""
    if type(plain) not in (int, float, complex, str, bytes, tuple, frozenset):
        raise ValueError("not the plain value of an object")
    if number not in session.derived:
        body = {
            "_candidate_class": number,
            "__getattr__": _of_stand_in,
            "__str__": lambda self: str(self._stand_in),
            "__repr__": lambda self: repr(self._stand_in),
            "__format__": lambda self, spec: format(self._stand_in, spec),
            "__deepcopy__": lambda self, memo: self,
        }
        session.derived[number] = type(name, (type(plain),), body)
    value = session.derived[number](plain)
    value._stand_in = stand_in
    return value


def _of_stand_in(self: Any, name: str) -> Any:
    if name.startswith("__") or name == "_stand_in":
        raise AttributeError(name)
    return getattr(self._stand_in, name)


class Remote:
    """A stand-in for a function, class or object of the candidate.

    It can be called, iterated over, indexed and passed to another call; its attributes, its length,
    its text and its truth value can be read. With a plain value it cannot be compared, and it takes
    no part in arithmetic with one: the candidate would decide what its result is compared with. If
    its class is derived from a plain one, its plain value is fetched and compared here.
    """

    __slots__ = ("_base", "_number", "_session")

    def __init__(self, session: Session, number: int, base: str) -> None:
        object.__setattr__(self, "_session", session)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_base", base)

    def _ask(self, operation: str, *operands: Any) -> Any:
        return self._session.ask(operation, self, *operands)

    def _refuse(self, what: str) -> Any:
        error = NotPlain(f"an object of the candidate's own class {what}")
        self._session.failures.append(error)
        raise error

    def _exactly(self, kind: type, value: Any) -> Any:
        return value if type(value) is kind else self._refuse(f"answers with no {kind.__name__}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the candidate's function, and return its value."""
        return self._ask("call", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in _READABLE:
            raise AttributeError(name)
        session = self._session
        try:
            return self._ask("get", name)
        except AttributeError as error:
            session.asked(error)  # an attribute that does not exist, as for hasattr
            raise

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name, value)

    def __delattr__(self, name: str) -> None:
        self._ask("delete", name)

    def __iter__(self) -> Iterator[Any]:
        iterator = self._ask("iter")
        if not isinstance(iterator, Remote):
            return iter(())  # not an iterator; such an answer holds nothing
        return _items(iterator)

    def __next__(self) -> Any:
        item = self._ask("next")
        if type(item) is not tuple or len(item) != 1:
            raise StopIteration
        return item[0]

    def __len__(self) -> int:
        try:
            length: int = self._exactly(int, self._ask("len"))
        except TypeError as error:
            self._session.asked(error)  # it has none: list() asks whether there is one
            raise
        return length

    def __bool__(self) -> bool:
        truth: bool = self._exactly(bool, self._ask("bool"))
        return truth

    def __str__(self) -> str:
        text: str = self._exactly(str, self._ask("str"))
        return text

    def __repr__(self) -> str:
        text: str = self._exactly(str, self._ask("repr"))
        return text

    def __format__(self, spec: str) -> str:
        text: str = self._exactly(str, self._ask("format", spec))
        return text

    def __hash__(self) -> int:
        number: int = self._exactly(int, self._ask("hash"))
        return number

    def __getitem__(self, key: Any) -> Any:
        return self._ask("getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("setitem", key, value)

    def __delitem__(self, key: Any) -> None:
        self._ask("delitem", key)

    def __enter__(self) -> Any:
        return self._ask("enter")

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if error is None:
            self._ask("exit", None, None, None)
            return False
        stand_in = getattr(error, "_stand_in", None)
        shown = str(error) if stand_in is None else stand_in
        swallows = self._ask("exit", _builtin(error)[0], shown, None)
        # only what the test itself raises, and never what it asserts
        mine = isinstance(error, AssertionError) or error in self._session.pending
        return swallows is True and not mine

    def __await__(self) -> Iterator[Any]:
        return _awaited(self).__await__()

    def __instancecheck__(self, thing: Any) -> bool:
        if type(thing) is not Remote:
            thing = getattr(thing, "_stand_in", None)
        if thing is None:
            return False
        truth: bool = self._exactly(bool, self._session.ask("isinstance", thing, self))
        return truth

    def __subclasscheck__(self, kind: Any) -> bool:
        truth: bool = self._exactly(bool, self._session.ask("issubclass", kind, self))
        return truth

    def __copy__(self) -> Any:
        return self._refuse("is not copied by a test")

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._refuse("is not copied by a test")

    @property
    def __class__(self) -> Any:  # isinstance(x, list) of a list of the candidate's own class
        return _PLAIN.get(self._base, Remote)

    @__class__.setter
    def __class__(self, kind: Any) -> None:
        self._refuse("keeps its class")


_PLAIN = {kind.__name__: kind for kind in (list, dict, set, bytearray, int, float, str, tuple)}
_READABLE = ("__name__", "__qualname__", "__doc__", "__dict__", "__annotations__", "__wrapped__")


def _items(iterator: Remote) -> Iterator[Any]:
    while True:
        item = iterator._ask("next")
        if type(item) is not tuple or len(item) != 1:
            return
        yield item[0]


def _compare(name: str, self: Remote, other: Any) -> Any:
    if type(other) is Remote and not (self._base and other._base):
        return self._exactly(bool, self._ask(name, other))
    if self._base:
        # compared here, by the values of the plain class
        mine, its = self._ask("plain"), other
        if type(other) is Remote:
            its = other._ask("plain")
        return getattr(operator, name)(mine, its)
    if other is None and name in ("eq", "ne"):
        return name == "ne"
    return self._refuse("is not compared with a plain value")


def _combine(name: str, self: Remote, other: Any) -> Any:
    if type(other) is Remote:
        return self._ask(name, other)
    if self._base:
        return getattr(operator, name)(self._ask("plain"), other)
    return self._refuse("takes no part in arithmetic with a plain value")


def _reflected(name: str, self: Remote, other: Any) -> Any:
    if self._base:
        return getattr(operator, name)(other, self._ask("plain"))
    return self._refuse("takes no part in arithmetic with a plain value")


def _method(function: Any, name: str) -> Any:
    return lambda self, *others: function(name, self, *others)


def _single(name: str, self: Remote) -> Any:
    return self._ask(name)


for _name in COMPARISONS:
    setattr(Remote, f"__{_name}__", _method(_compare, _name))
for _name in ARITHMETIC:
    _plain = _name.strip("_")
    setattr(Remote, f"__{_plain}__", _method(_combine, _name))
    setattr(Remote, f"__r{_plain}__", _method(_reflected, _name))
for _name in UNARY:
    setattr(Remote, f"__{_name}__", _method(_single, _name))
