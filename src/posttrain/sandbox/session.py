"""The trusted side of the channel to one candidate.

A call of a stand-in sends the arguments and returns a plain value that this process built itself.
Nothing that the candidate's process reports about itself is believed: a reply that is not exactly
the answer to the pending call ends the candidate.
"""

import builtins
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from posttrain.sandbox.changes import Changes
from posttrain.sandbox.frames import TooLarge, label, read_frame, write_frame
from posttrain.sandbox.lending import Unsendable, builtin_of, lend, perform_lent, resolve_lent
from posttrain.sandbox.operations import plain_value
from posttrain.sandbox.raised import class_of, exception_of, is_exception_class
from posttrain.sandbox.remote import Remote, awaited, derived
from posttrain.sandbox.shared import Common, WireError
from posttrain.sandbox.wire import decode, encode
from posttrain.sandbox.witness import OBSERVING, names_a_class


class CandidateGone(Exception):
    """The candidate's process has ended; every further call raises this too."""


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
    objects: dict[int, Remote] = field(default_factory=dict)
    """Stand-ins by the candidate's number of the object."""
    derived: dict[int, type] = field(default_factory=dict)
    """Classes that stand for the candidate's subclasses of plain classes, by its number."""
    exceptions: dict[int, type] = field(default_factory=dict)
    """Classes that stand for the candidate's own exception classes, by its number."""
    errors: dict[int, BaseException] = field(default_factory=dict)
    """Exceptions that stand for the candidate's, by its number."""
    names_classes: bool = True
    """Whether the tests name a class of the candidate's, whose objects behave as it likes."""
    observed: dict[int, dict[Any, Any]] = field(default_factory=dict)
    """What its objects have answered since one may have changed (`witness.py`), by number."""
    state: int = 0
    """Counts the operations that may change objects."""
    stdout: Any = field(default_factory=lambda: sys.stdout)
    """Where this process prints, unless a test catches that."""
    copies: bool = False
    """Whether stand-ins are copied as themselves."""
    named_tuples: dict[tuple[Any, ...], type] = field(default_factory=dict)
    """Classes of named tuples that the tests passed, by name and fields."""
    lent: dict[int, Any] = field(default_factory=dict)
    """Functions, iterators and objects that the tests passed, by their number."""
    common: Common = field(init=False)
    changes: Changes = field(init=False)

    def __post_init__(self) -> None:
        self.common = Common(
            lambda thing: _refer(self, thing),
            lambda kind, value: _resolve(self, kind, value),
            refused=("ndarray",),
            forgets=True,
        )
        self.changes = Changes(self.common)

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
        self.names_classes = names_a_class(names)
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
        if operation not in OBSERVING:
            self.observed.clear()
            self.state += 1
        passed = self.changes.passing(direct)
        sent = dict(self.common.contents)
        expected_changes: set[int] = set()
        try:
            value = self._talk(message)
            if value is None:
                # it works in place, or is a method of an object that does
                expected_changes = passed | self.changes.held
            elif type(value) is Remote and operation == "call":
                self.changes.held |= passed
            return value
        finally:
            self.changes.note(sent, expected_changes)

    def _talk(self, message: bytes) -> Any:
        """Send a message; lend what the candidate asks for until it answers."""
        while True:
            match self._receive(message):
                case ("value", value):
                    return value
                case ("error", error) if issubclass(type(error), BaseException):
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
            data, expected = self.exchange(message), label(self.nonce, self.number)
            if not data.startswith(expected):
                raise WireError("it answers no call")
            self.number += 1  # now, as the program may be asked for the hash of a key
            reply = decode(self.common, data[len(expected) :])
        except (EOFError, OSError):
            self.gone = "died"
            raise CandidateGone("the candidate's process ended") from None
        except TooLarge as error:
            self.gone = "output"
            raise CandidateGone(str(error)) from None
        except WireError as error:
            self.gone = "protocol"
            raise CandidateGone(f"not a reply: {error}") from None
        if type(reply) is tuple:
            return reply
        self.gone = "protocol"
        raise CandidateGone("a reply that answers no call")

    def _serve(self, number: int, operation: str, operands: tuple[Any, ...]) -> bytes:
        """Use a function or object of the tests for the candidate; return the message about it."""
        try:
            thing = self.lent[number]
            if operation == "set":
                self.changes.setting(thing, str(operands[0]))
            value = perform_lent(thing, operation, operands)
            return encode(self.common, ("value", value))[0]
        except CandidateGone:
            raise
        except BaseException as error:
            if isinstance(error, AssertionError) and error not in self.pending:
                self.failures.append(error)  # the candidate cannot swallow what a test asserts
            try:
                return encode(self.common, ("error", error))[0]
            except (Unsendable, WireError):  # it holds something that cannot be sent
                bare = getattr(builtins, builtin_of(error))(str(error))
                return encode(self.common, ("error", bare))[0]

    def type_of(self, thing: Any) -> Any:
        """Return the class of a value, or what stands for it."""
        if type(thing) is Remote:
            return thing._type()
        number = getattr(type(thing), "_candidate_class", None)
        if number is None:
            return type(thing)
        return self.objects.setdefault(number, Remote(self, number, ""))

    def asked(self, error: BaseException | None) -> None:
        """Take an exception of the candidate as the one that the test asks for."""
        self.pending = [other for other in self.pending if other is not error]

    def as_passed(self, compute: Callable[[], Any], level: int = 0) -> Any:
        """Return a value that is computed from arguments as they were passed to the candidate."""
        self.copies = True
        try:
            return self.changes.as_passed(compute, level)
        finally:
            self.copies = False


def _are(kinds: tuple[type, ...], *values: Any) -> bool:
    """Whether values are of exactly these classes; a stand-in may pass for one in isinstance."""
    return all(type(value) is kind for value, kind in zip(values, kinds, strict=True))


def over_channel(channel: int, largest: int) -> Callable[[bytes], bytes]:
    """Return the `exchange` of a session over a channel; a reply has at most `largest` bytes."""

    def exchange(message: bytes) -> bytes:
        write_frame(channel, message)
        return read_frame(channel, largest)

    return exchange


# --- references -----------------------------------------------------------------------------------


def _refer(session: Session, thing: Any) -> tuple[str, Any]:
    if type(thing) is Remote:
        return "remote", (thing._number, thing._base)
    if isinstance(thing, BaseException) and hasattr(thing, "_stand_in"):
        return "remote", (thing._stand_in._number, "")
    if is_exception_class(thing) and "_class_stand_in" in vars(thing):
        return "remote", (thing._class_stand_in._number, "")
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
            return awaited(stand_in) if base == "coroutine" else stand_in
        case "exception class", (Remote() as stand_in, module, name, bases) if _are(
            (str, str, tuple), module, name, bases
        ):
            return class_of(session.exceptions, stand_in, module, name, bases)
        case "exception", (exception_class, arguments, text, attributes, cause, stand_in) if (
            is_exception_class(exception_class)
            and _are((tuple, str, dict, Remote), arguments, text, attributes, stand_in)
        ):
            if stand_in._number not in session.errors:
                parts = (arguments, text, attributes, cause, stand_in)
                session.errors[stand_in._number] = exception_of(exception_class, *parts)
            return session.errors[stand_in._number]
        case "derived", (number, class_number, name, base, plain) if _are(
            (int, int, str, str), number, class_number, name, base
        ):
            stand_in = session.objects.setdefault(number, Remote(session, number, base))
            return derived(session, stand_in, class_number, name, base, plain)
    return resolve_lent(session.lent, session.named_tuples, session.common.classes, kind, value)
