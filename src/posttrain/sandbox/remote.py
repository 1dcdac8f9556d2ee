"""The trusted side of the channel: stand-ins for the candidate's functions and objects.

A call of a stand-in sends the arguments and returns a plain value that this process built itself.
Nothing that the candidate's process reports about itself is believed: a reply that is not exactly
the answer to the pending call ends the candidate.
"""

import builtins
import secrets
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from posttrain.sandbox.wire import TooLarge, WireError, decode, encode, read_frame, write_frame


class CandidateGone(Exception):
    """The candidate's process has ended; every further call raises this too."""


class NotPlain(Exception):
    """The test used an object of the candidate in a way that only plain values allow."""


class Unsendable(Exception):
    """The test passes something to the candidate that is not a plain value."""


@dataclass
class Session:
    """One candidate and the channel to it."""

    channel: int
    largest: int
    """Limit of one reply, in bytes."""
    nonce: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    number: int = 0
    """Number of the pending call."""
    num_asked: int = 0
    """Messages sent."""
    gone: str | None = None
    """The verdict, once the candidate cannot answer any more; no test can undo it."""
    objects: dict[int, "Remote"] = field(default_factory=dict)
    """Stand-ins by the candidate's number of the object."""

    def load(self, program: str, names: list[str], limits: dict[str, int]) -> dict[str, Any]:
        """Run a program of functions, and return what it defines of `names`.

        Raise what the program raised, as an exception of this process.
        """
        job = {
            "mode": "functions",
            "program": program,
            "names": names,
            "nonce": self.nonce,
            "limits": limits,
        }
        defined = self._ask(job)
        if type(defined) is not dict:
            self.gone = "protocol"
            raise CandidateGone("the answer to loading is not a dict")
        # no other name: the candidate must not define what else the tests call
        return {name: defined[name] for name in names if name in defined}

    def ask(self, *operation: Any) -> Any:
        """Return the value of an operation (see `child.py`), or raise what the candidate raised."""
        return self._ask(operation)

    def _ask(self, message: Any) -> Any:
        if self.gone is not None:
            raise CandidateGone(self.gone)
        data = encode(message, _number_of)
        self.num_asked += 1
        try:
            write_frame(self.channel, data)
            reply = decode(read_frame(self.channel, self.largest), self._resolve)
        except (EOFError, OSError):
            self.gone = "died"
            raise CandidateGone("the candidate's process ended") from None
        except TooLarge as error:
            self.gone = "output"
            raise CandidateGone(str(error)) from None
        except WireError as error:
            self.gone = "protocol"
            raise CandidateGone(f"not a reply: {error}") from None
        return self._accept(reply, message)

    def _accept(self, reply: Any, message: Any) -> Any:
        match reply:
            case (self.nonce, self.number, True, value, changed):
                self.number += 1
                # as functions do that work in place; others must not change what a test compares
                if value is None and type(changed) is tuple and message[0] == "call":
                    for before, after in zip(message[2], changed):
                        _mirror(before, after)
                return value
            case (self.nonce, self.number, False, [*names], str(text)):
                self.number += 1
                raise _exception(names, text)
        self.gone = "protocol"
        raise CandidateGone("a reply that answers no call")

    def _resolve(self, number: int) -> "Remote":
        return self.objects.setdefault(number, Remote(self, number))


class Remote:
    """A stand-in for a function, class or object of the candidate.

    It can be called, iterated over and passed to another call, and its public attributes can be
    read and set. It cannot be compared and has no truth value: the candidate would decide both.
    """

    __slots__ = ("_number", "_session")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, session: Session, number: int) -> None:
        object.__setattr__(self, "_session", session)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the candidate's function, and return its value."""
        return self._session.ask("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._session.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._session.ask("set", self, name, value)

    def __iter__(self) -> Iterator[Any]:
        iterator = self._session.ask("iter", self)
        while True:
            try:
                item = self._session.ask("next", iterator)
            except StopIteration:
                return
            yield item

    def _refuse(self, *others: Any) -> Any:
        raise NotPlain("an object of the candidate's own class has no comparison or truth value")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = _refuse


def _number_of(thing: Any) -> int:
    if type(thing) is Remote:
        number: int = object.__getattribute__(thing, "_number")
        return number
    raise Unsendable(f"the test passes a {type(thing).__name__}, which cannot be sent")


def _exception(names: list[Any], text: str) -> Exception:
    """Return the first builtin exception among the names of the raised class and its bases."""
    for name in names:
        kind = vars(builtins).get(name) if type(name) is str else None
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(text)
            except TypeError:  # UnicodeDecodeError needs five arguments; its base does not
                continue
    return Exception(f"{names[0] if names else 'an exception'}: {text}")


def _mirror(before: Any, after: Any) -> None:
    """Give a mutable argument the content that the call left in it, in place."""
    kind = type(before)
    if kind is not type(after):
        return
    if kind is list and len(before) == len(after):
        for i, (old, new) in enumerate(zip(before, after)):
            if type(old) is type(new) and type(old) in _REFILL:
                _mirror(old, new)
            else:
                before[i] = new
    elif kind in _REFILL:
        _REFILL[kind](before, after)


def _refill(before: Any, after: Any) -> None:
    before.clear()
    (before.update if isinstance(before, (dict, set)) else before.extend)(after)


_REFILL: dict[type, Callable[[Any, Any], None]] = dict.fromkeys(
    (list, dict, set, bytearray, deque), _refill
)
