"""What a candidate raises, as exceptions of the trusted process.

An exception class of the candidate's own becomes a class here, with the same name and bases, so
that `except E`, `assertRaises(E)`, `issubclass` and `raise E(...)` in a test do what they say.
"""

import builtins
import sys
from contextlib import suppress
from typing import Any, cast


class OwnClass(type):
    """The class of exception classes that stand for the candidate's own."""

    def __call__(cls, *args: Any, **named: Any) -> Any:
        """Have the candidate make the exception."""
        stand_in = vars(cls).get("_class_stand_in")
        if stand_in is None:  # a class of the test's, derived from one of the candidate's
            return super().__call__(*args, **named)
        return stand_in(*args, **named)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(cls._class_stand_in, name)


def class_of(
    classes: dict[int, type], stand_in: Any, module: str, name: str, bases: tuple[Any, ...]
) -> type[BaseException]:
    """Return the class that stands for an exception class of the candidate.

    Args:
        classes: Those that stand for the candidate's own already, by number.
        stand_in: What stands for the class itself, for its attributes.
        module: Its module; if the standard library has this class, that one is returned.
        name: Its name.
        bases: Those of its bases that are exception classes.

    Raises:
        ValueError: A base is none.
    """
    found = _library_class(module, name)
    if found is not None:
        return found
    number = stand_in._number
    if number not in classes:
        if not bases or not all(is_exception_class(base) for base in bases):
            raise ValueError("the bases of an exception class")
        body = {
            "_class_stand_in": stand_in,
            "__module__": "candidate",
            "__str__": _text,
            "__getattr__": _attribute,
        }
        try:
            classes[number] = OwnClass(name, bases, body)
        except TypeError:  # bases that do not fit together here
            classes[number] = OwnClass(name, bases[:1], body)
    return classes[number]


def is_exception_class(thing: Any) -> bool:
    """Whether something is an exception class of this process."""
    return issubclass(type(thing), type) and issubclass(thing, BaseException)


def exception_of(
    kind: type[BaseException],
    arguments: tuple[Any, ...],
    text: str,
    attributes: dict[str, Any],
    cause: Any,
    stand_in: Any,
) -> BaseException:
    """Return an exception of a class, with the arguments, text, attributes and cause given.

    Args:
        stand_in: What stands for the exception itself, for attributes that this process lacks.
    """
    error: Any
    library = next(k for k in kind.__mro__ if k.__module__ in sys.stdlib_module_names)
    make = library.__new__ if library is not kind else (lambda kind, *args: kind(*args))
    try:
        error = make(kind, *arguments)
    except Exception:  # some classes need other arguments
        error = cast(Any, library).__new__(kind)
    error.args = arguments
    for name, value in attributes.items():
        with suppress(AttributeError, TypeError):  # one that Python computes
            setattr(error, name, value)
    if isinstance(cause, BaseException):
        error.__cause__ = cause
    error._text = text
    error._stand_in = stand_in
    return error  # type: ignore[no-any-return]


def _text(self: BaseException) -> str:
    text = vars(self).get("_text")
    return ", ".join(map(str, self.args)) if text is None else text


def _attribute(self: BaseException, name: str) -> Any:
    if name.startswith("_") or "_stand_in" not in vars(self):
        raise AttributeError(name)
    return getattr(self._stand_in, name)  # type: ignore[attr-defined]


def _library_class(module: str, name: str) -> type[BaseException] | None:
    """Return the exception class of this name in the standard library, if its module is loaded."""
    if module == "builtins":
        kind = vars(builtins).get(name)
    elif module.split(".")[0] in sys.stdlib_module_names and module in sys.modules:
        kind = vars(sys.modules[module]).get(name)
    else:
        return None
    return kind if is_exception_class(kind) else None
