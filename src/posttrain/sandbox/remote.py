"""Stand-ins, on the trusted side, for the candidate's functions and objects."""

import copy
import sys
from collections.abc import Generator, Iterator
from types import GeneratorType, MethodType
from typing import Any

from posttrain.sandbox.lending import builtin_of
from posttrain.sandbox.mixed import answered
from posttrain.sandbox.operations import signature_of
from posttrain.sandbox.operators import define_operators
from posttrain.sandbox.witness import IMMUTABLE, PREDICATES, has_plain, noted, plain_view, reads

Session = Any  # of session.py, which makes stand-ins


class NotPlain(Exception):
    """The test used an object of the candidate in a way that only plain values allow."""


async def awaited(stand_in: "Remote") -> Any:
    """Return what the candidate's awaitable comes to."""
    return stand_in._session.ask("await", stand_in)


def derived(
    session: Session, stand_in: "Remote", number: int, name: str, base: str, plain: Any
) -> Any:
    """Return a value of an immutable plain class, of a class that stands for the candidate's."""
    if type(plain) not in (int, float, complex, str, bytes, tuple, frozenset):
        raise ValueError("not the plain value of an object")
    if number not in session.derived:
        body = {
            "_candidate_class": number,
            "__getattr__": _of_stand_in,
            "__deepcopy__": lambda self, memo: self,
        }
        if session.names_classes:
            body |= _OWN_TEXTS
        session.derived[number] = type(name, (type(plain),), body)
    value = session.derived[number](plain)
    value._stand_in = stand_in
    return value


_OWN_TEXTS: dict[str, Any] = {
    "__str__": lambda self: str(self._stand_in),
    "__repr__": lambda self: repr(self._stand_in),
    "__format__": lambda self, spec: format(self._stand_in, spec),
}


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

    __slots__ = ("_base", "_mixed", "_number", "_session")

    def __init__(self, session: Session, number: int, base: str) -> None:
        object.__setattr__(self, "_session", session)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_base", base)
        object.__setattr__(self, "_mixed", False)

    def _ask(self, operation: str, *operands: Any) -> Any:
        value = self._session.ask(operation, self, *operands)
        return answered(self, operation, operands, value) if self._mixed else value

    def _refuse(self, what: str) -> Any:
        error = NotPlain(f"an object of the candidate's own class {what}")
        self._session.failures.append(error)
        raise error

    def _exactly(self, kind: type, value: Any) -> Any:
        return value if type(value) is kind else self._refuse(f"answers with no {kind.__name__}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the candidate's function, and return its value."""
        session = self._session
        if sys.stdout is session.stdout:
            return self._ask("call", args, kwargs)
        # the test catches what is printed
        session.ask("capture", True)
        try:
            return self._ask("call", args, kwargs)
        finally:
            text = session.ask("capture", False) if session.gone is None else ""
            sys.stdout.write(self._exactly(str, text))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in _READABLE and name != "__signature__":
            raise AttributeError(name)
        session = self._session
        if name == "__signature__":
            return signature_of(self._ask("signature"))
        plain = plain_view(self)
        if plain is not None and reads(plain, name):
            return getattr(plain, name)
        if not has_plain(self) and name in PREDICATES and not session.names_classes:
            return self._refuse(f"answers {name}")
        try:
            return self._ask("get", name)
        except AttributeError as error:
            session.asked(error)  # an attribute that does not exist, as for hasattr
            raise

    def __get__(self, thing: Any, owner: Any = None) -> Any:
        # a decorated method of a class of the test's
        return self if thing is None or self._base != "function" else MethodType(self, thing)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return self._refuse("is not subclassed by a test")  # type: ignore[no-any-return]

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name, value)

    def __delattr__(self, name: str) -> None:
        self._ask("delete", name)

    def __iter__(self) -> Iterator[Any]:
        plain = plain_view(self)
        if plain is not None:
            return iter(plain)
        iterator = self._ask("iter")
        if type(iterator) is not Remote:
            return iter(())  # not an iterator; such an answer holds nothing
        return iterator if iterator is self else _watched(self, iterator)

    def __next__(self) -> Any:
        item = self._ask("next")
        if type(item) is not tuple or len(item) != 1:
            raise StopIteration(*item[1:2]) if type(item) is tuple else StopIteration
        return item[0]

    def __contains__(self, thing: Any) -> bool:
        plain = plain_view(self)
        if plain is not None:
            return thing in plain
        if not self._session.names_classes:
            return any(item is thing or item == thing for item in self)
        return self._exactly(bool, self._ask("contains", thing))  # type: ignore[no-any-return]

    def __reversed__(self) -> Iterator[Any]:
        plain = plain_view(self)
        if plain is not None:
            return reversed(plain)  # type: ignore[no-any-return]
        if self._session.names_classes:
            return iter(self._ask("reversed"))
        items = list(self._ask("reversed"))
        try:
            noted(self, "len", len(self))  # what it raises while it is reversed looks like its end
        except TypeError:
            return iter(items)
        noted(self, "items", tuple(items[::-1]))
        return iter(items)

    def __int__(self) -> int:
        return self._number_as(int, "int")  # type: ignore[no-any-return]

    def __float__(self) -> float:
        return self._number_as(float, "float")  # type: ignore[no-any-return]

    def __complex__(self) -> complex:
        return self._number_as(complex, "complex")  # type: ignore[no-any-return]

    def __round__(self, *digits: int) -> Any:
        plain = plain_view(self)
        if plain is not None:
            return round(plain, *digits)
        return self._ask("round", *digits)

    def _number_as(self, kind: type, operation: str) -> Any:
        plain = plain_view(self)
        if plain is not None:
            return kind(plain)
        return self._exactly(kind, self._ask(operation))

    def __len__(self) -> int:
        plain = plain_view(self)
        if plain is not None:
            return len(plain)
        try:
            length: int = self._exactly(int, self._ask("len"))
            noted(self, "len", length)
        except TypeError as error:
            self._session.asked(error)  # it has none: list() asks whether there is one
            raise
        return length

    def __bool__(self) -> bool:
        plain = plain_view(self)
        if plain is not None:
            return bool(plain)
        truth: bool = self._exactly(bool, self._ask("bool"))
        noted(self, "bool", truth)
        return truth

    def __str__(self) -> str:
        plain = plain_view(self)
        if type(plain) in IMMUTABLE:
            return str(plain)
        text: str = self._exactly(str, self._ask("str"))
        noted(self, "str", text)
        return text

    def __repr__(self) -> str:
        plain = plain_view(self)
        if type(plain) in IMMUTABLE:
            return repr(plain)
        text: str = self._exactly(str, self._ask("repr"))
        return text

    def __format__(self, spec: str) -> str:
        plain = plain_view(self)
        if type(plain) in IMMUTABLE:
            return format(plain, spec)
        text: str = self._exactly(str, self._ask("format", spec))
        return text

    def __hash__(self) -> int:
        if has_plain(self):  # objects with the same plain value are equal here
            plain = self._ask("plain")
            return hash(plain) if type(plain) in IMMUTABLE else 0
        number: int = self._exactly(int, self._ask("hash"))
        noted(self, "hash", number)
        return number

    def __getitem__(self, key: Any) -> Any:
        plain = plain_view(self)
        if plain is not None and (type(plain) is not dict or key in plain):
            return plain[key]
        item = self._ask("getitem", key)
        return (
            noted(self, ("item", key), item) if type(key) is int and not has_plain(self) else item
        )

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("setitem", key, value)

    def __delitem__(self, key: Any) -> None:
        self._ask("delitem", key)

    def __enter__(self) -> Any:
        return self._ask("enter")

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        return self._leave("exit", error)

    def _leave(self, operation: str, error: Any) -> bool:
        if error is None:
            self._ask(operation, None, None, None)
            return False
        stand_in = getattr(error, "_stand_in", None)
        shown = str(error) if stand_in is None else stand_in
        swallows = self._ask(operation, builtin_of(error), shown, None)
        # only what the test itself raises, and never what it asserts
        mine = isinstance(error, AssertionError) or error in self._session.pending
        return swallows is True and not mine

    def __aiter__(self) -> Any:
        return self._ask("aiter")

    async def __anext__(self) -> Any:
        item = self._ask("anext")
        if type(item) is not tuple or len(item) != 1:
            raise StopAsyncIteration
        return item[0]

    async def __aenter__(self) -> Any:
        return self._ask("aenter")

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> bool:
        return self._leave("aexit", error)

    def __await__(self) -> Iterator[Any]:
        return awaited(self).__await__()

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
        plain = plain_view(self)
        return self._copied("copy") if plain is None else copy.copy(plain)

    def __deepcopy__(self, memo: Any) -> Any:
        if self._session.copies:
            return self
        plain = plain_view(self)
        return self._copied("deepcopy") if plain is None else copy.deepcopy(plain, memo)

    def _copied(self, operation: str) -> Any:
        value = self._ask(operation)
        return value if type(value) is Remote else self._refuse("has a copy that is no object")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._refuse("is not copied by a test")

    @property
    def __class__(self) -> Any:  # isinstance(x, list) of a list of the candidate's own class
        return _PLAIN.get(self._base, Remote)

    @__class__.setter
    def __class__(self, kind: Any) -> None:
        self._refuse("keeps its class")

    def _type(self) -> Any:
        kind = self._ask("type")
        return kind if type(kind) is Remote else self._refuse("has no class of its own")


_PLAIN: dict[str, type] = {
    kind.__name__: kind for kind in (list, dict, set, bytearray, int, float, str, tuple)
}
_PLAIN["generator"] = GeneratorType
_READABLE = (
    *("__name__", "__qualname__", "__doc__", "__dict__", "__annotations__", "__wrapped__"),
    *("__bases__", "__mro__", "__module__", "__slots__", "__match_args__"),
)


def _watched(owner: Remote, iterator: Remote) -> Generator[Any, None, Any]:
    """Yield the items of a pass over an object; at its end, check that they are always the same."""
    items: list[Any] = []
    state = owner._session.state
    while True:
        try:
            item = next(iterator)
        except StopIteration as end:
            if owner._session.state == state:
                noted(owner, "items", tuple(items))
            return end.value
        items.append(item)
        yield item


# of the object, not of this class
setattr(Remote, "__doc__", property(lambda self: self._ask("get", "__doc__")))  # noqa: B010
define_operators(Remote)
