"""What the tests lend to a candidate, on the candidate's side: functions, objects, exceptions.

Runs in the sandbox, next to the model's program (see `child.py`).
"""

import _thread
from types import MethodType
from typing import Any

from posttrain.sandbox.operations import COMPARISONS, signature_of

Served = Any  # of child.py, which makes these

# One operation at a time: several threads of the program may use what they were lent.
_CHANNEL = _thread.RLock()  # script.py changes this module before threading is loaded
_READABLE = ("__name__", "__qualname__", "__doc__", "__module__")


class Lent:
    """A function, iterator or object of the tests, which stays with them."""

    __slots__ = ("__weakref__", "_kind", "_number", "_served")

    def __init__(self, served: Served, number: int, kind: str) -> None:
        object.__setattr__(self, "_served", served)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_kind", kind)

    def _ask(self, operation: str, *operands: Any) -> Any:
        with _CHANNEL:
            return self._served.borrow(self._number, operation, operands)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._ask("call", args, kwargs)

    def __get__(self, thing: Any, owner: Any = None) -> Any:
        if thing is None or self._kind != "function":
            return self
        return MethodType(self, thing)

    def __getattr__(self, name: str) -> Any:
        if name == "__signature__" and self._kind == "function":
            return signature_of(self._ask("signature"))
        if self._kind != "object" and name not in _READABLE:
            raise AttributeError(name)
        if name.startswith("_") and name not in _READABLE:
            raise AttributeError(name)
        return self._ask("get", name)

    def __getattribute__(self, name: str) -> Any:
        if name in ("__doc__", "__module__"):  # not those of this class
            return Lent.__getattr__(self, name)
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name, value)

    def __hash__(self) -> int:
        return int(self._ask("hash")) if self._kind == "object" else object.__hash__(self)

    def __contains__(self, thing: Any) -> bool:
        return bool(self._ask("contains", thing))

    def __iter__(self) -> Any:
        return self._ask("iter")

    def __next__(self) -> Any:
        item = self._ask("next")
        if len(item) != 1:
            raise StopIteration(*item[1:])
        return item[0]

    def __await__(self) -> Any:
        return self._ask("await")
        yield  # a generator, which an awaitable is

    def __len__(self) -> int:
        length: int = self._ask("len")
        return length

    def __bool__(self) -> bool:
        return self._kind != "object" or bool(self._ask("bool"))

    def __str__(self) -> str:
        return str(self._ask("str"))

    def __repr__(self) -> str:
        return str(self._ask("repr"))

    def __getitem__(self, key: Any) -> Any:
        return self._ask("getitem", key)

    def __enter__(self) -> Any:
        return self._ask("enter")

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        return bool(self._ask("exit", None if kind is None else kind.__name__, error, None))


def _comparison(name: str) -> Any:
    def compare(self: Lent, other: Any) -> Any:
        if self is other and name in ("eq", "ne"):
            return name == "eq"
        return self._ask(name, other) if self._kind == "object" else NotImplemented

    return compare


for _name in COMPARISONS:
    setattr(Lent, f"__{_name}__", _comparison(_name))


def exception_class(name: str, bases: tuple[type, ...]) -> type:
    """Return a class that stands for an exception class of the tests."""
    return type(name, bases, {"__module__": "test", "__str__": _text})


def make_exception(kind: type[BaseException], arguments: tuple[Any, ...], text: str) -> Any:
    """Return an exception of the tests, of a class that Python has or the above made."""
    try:
        error = kind(*arguments)
    except Exception:
        error = kind.__new__(kind)
        error.args = arguments
    if kind.__module__ == "test":
        error._text = text  # type: ignore[attr-defined]
    return error


def _text(self: BaseException) -> str:
    text = vars(self).get("_text")
    return ", ".join(map(str, self.args)) if text is None else text
