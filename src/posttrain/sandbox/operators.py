"""The operators of the candidate's objects: comparisons and arithmetic (see `remote.Remote`)."""

import operator
from typing import Any

from posttrain.sandbox.mixed import may_mix, mixed
from posttrain.sandbox.operations import ARITHMETIC, COMPARISONS, UNARY
from posttrain.sandbox.witness import has_plain, plain_view


def define_operators(kind: type) -> None:
    """Give the class of stand-ins its operators."""
    for name in COMPARISONS:
        setattr(kind, f"__{name}__", _method(_compare, name))
    for name in ARITHMETIC:
        plain = name.strip("_")
        setattr(kind, f"__{plain}__", _method(_combine, name))
        setattr(kind, f"__r{plain}__", _method(_reflected, name))
        setattr(kind, f"__i{plain}__", _method(_in_place, name))
    for name in UNARY:
        setattr(kind, f"__{name}__", _method(_single, name))


def _compare(name: str, self: Any, other: Any) -> Any:
    if name == "ne" and not self._session.names_classes:  # one answer, for both operators
        return not _compare("eq", self, other)
    if type(other) is type(self) and not (has_plain(self) and has_plain(other)):
        return self._exactly(bool, self._ask(name, other))
    if has_plain(self):
        # compared here, by the values of the plain class
        mine, its = _value(self, type(self)), _value(other, type(self))
        return getattr(operator, name)(mine, its)
    if other is None and name in ("eq", "ne"):
        return name == "ne"
    return self._refuse("is not compared with a plain value")


def _value(thing: Any, kind: Any) -> Any:
    """Return the plain value of a stand-in (of class `kind`), and any other value itself."""
    if type(thing) is not kind:
        return thing
    plain = plain_view(thing)
    return thing._ask("plain") if plain is None else plain


def _combine(name: str, self: Any, other: Any) -> Any:
    if plain_view(self) is not None and (type(other) is not type(self) or has_plain(other)):
        return getattr(operator, name)(_value(self, type(self)), _value(other, type(self)))
    if type(other) is type(self):
        return self._ask(name, other)
    if has_plain(self):
        return getattr(operator, name)(self._ask("plain"), other)
    if may_mix(self, name, other):
        return mixed(self, self._ask(name, other))
    return self._refuse("takes no part in arithmetic with a plain value")


def _in_place(name: str, self: Any, other: Any) -> Any:
    if plain_view(self) is not None:
        return _combine(name, self, other)
    holds = type(other) in (list, tuple, set, dict) and self._session.names_classes
    if type(other) is not type(self) and not holds and not may_mix(self, name, other):
        return self._refuse("takes no part in arithmetic with a plain value")
    value = self._ask(f"i{name.strip('_')}", other)
    if type(value) is not type(self):
        return self._refuse("comes to a plain value in arithmetic with one")
    is_whole = type(other) is type(self) or (holds and value is self)
    return value if is_whole else mixed(self, value)


def _reflected(name: str, self: Any, other: Any) -> Any:
    if has_plain(self):
        return getattr(operator, name)(other, self._ask("plain"))
    if may_mix(self, name, other):
        return mixed(self, self._session.ask(name, other, self))
    return self._refuse("takes no part in arithmetic with a plain value")


def _method(function: Any, name: str) -> Any:
    return lambda self, *others: function(name, self, *others)


def _single(name: str, self: Any) -> Any:
    plain = plain_view(self)
    if plain is not None:
        return getattr(operator, name)(plain)
    return self._ask(name)
