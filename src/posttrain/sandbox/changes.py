"""What a candidate changed of the tests' arguments, and values computed from these as passed.

A call that changes its arguments and returns a value must not choose by that what its value is
compared with: `def f(a): a.clear(); return []` is no `sorted`, though `f(x) == sorted(x)` holds
afterwards. So the contents from before are kept, and what results are compared with is computed
from them (`instrument.py` finds these expressions).
"""

import copy
from collections import deque
from collections.abc import Callable, ItemsView, Iterator, KeysView, Sequence, ValuesView
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from posttrain.sandbox.shared import Common
from posttrain.sandbox.wire import content_of, refill

_PLAIN = (int, float, complex, str, bytes, bool, type(None))
_COPIED = (list, tuple, dict, set, frozenset, bytearray, deque)


@dataclass
class Changes:
    """The contents that shared objects had before a candidate changed them."""

    common: Common
    earlier: dict[int, bytes] = field(default_factory=dict)
    """By number: the contents when the test passed the objects."""
    latest: dict[int, bytes] = field(default_factory=dict)
    """By number: the contents before the last call that changed them."""
    again: list[Any] = field(default_factory=list)
    """Results of the candidate that are about to be passed to it."""
    held: set[int] = field(default_factory=set)
    """Numbers of arguments that an object of the candidate's may hold, and so change later."""
    attributes: list[tuple[Any, str, Any]] = field(default_factory=list)
    """(object, name, value) of attributes of the tests' objects before the candidate set them."""
    fixed: tuple[Any, bool] | None = None
    """A sequence that is not shared, and whether it holds plain values alone."""

    def passed_again(self, value: Any) -> Any:
        """Return a result of the candidate that is passed to it.

        A result may be an argument of an earlier call. It was not the test that gave it its present
        content, so this is not the content "as it was passed".
        """
        self.again.append(value)
        return value

    def passing(self, numbers: Sequence[int]) -> set[int]:
        """Note that the test passes these objects, and return the numbers of all that they hold."""
        passed = self.common.reachable(numbers)
        results = self.common.reachable(self._numbers(self.again))
        self.again.clear()
        for number in passed:
            self.latest.pop(number, None)
            if number not in results:
                self.earlier.pop(number, None)
        return passed

    def note(self, sent: dict[int, bytes], expected: set[int]) -> None:
        """Note what a call has changed.

        Args:
            sent: The contents before the call.
            expected: Numbers of objects that the call was to change.
        """
        for number, content in sent.items():
            if number not in expected and self.common.contents.get(number, content) != content:
                self.earlier.setdefault(number, content)
                self.latest[number] = content

    def setting(self, thing: Any, name: str) -> None:
        """Note an attribute of an object of the tests that the candidate is about to set."""
        if not any(known is thing and which == name for known, which, _ in self.attributes):
            self.attributes.append((thing, name, getattr(thing, name, None)))

    def _numbers(self, values: Sequence[Any]) -> list[int]:
        """Return the numbers of the shared objects among values, and in tuples among them."""
        found: list[int] = []
        for value in values:
            if type(value) is tuple:
                found += self._numbers(value)
            elif (number := self.common.numbers.get(id(value))) is not None:
                found.append(number)
        return found

    def as_passed(self, compute: Callable[[], Any], level: int) -> Any:
        """Return a value that is computed from arguments as they were passed to the candidate.

        Args:
            compute: Returns the value.
            level: 1 if it depends on earlier results; then contents before the last call count.
        """
        if self.attributes:
            return self._with_attributes(compute, level)
        return self._with_contents(compute, level)

    def _with_attributes(self, compute: Callable[[], Any], level: int) -> Any:
        now = [(thing, name, getattr(thing, name, None)) for thing, name, _ in self.attributes]
        for thing, name, value in self.attributes:
            setattr(thing, name, value)
        try:
            return self._with_contents(compute, level)
        finally:
            for thing, name, value in now:
                setattr(thing, name, value)

    def _with_contents(self, compute: Callable[[], Any], level: int) -> Any:
        before = self.latest if level else self.earlier
        if not before or not self._concerns(compute, before):
            return compute()
        # the test may have changed one itself since
        now = {
            number: content
            for number in before
            if (content := content_of(self.common, number)) == self.common.contents.get(number, 0)
        }
        if not now:
            return compute()
        for number in now:
            refill(self.common, number, before[number])
        try:
            return _fixed(compute())
        finally:
            for number, content in now.items():
                refill(self.common, number, content)

    def _concerns(self, compute: Callable[[], Any], changed: dict[int, bytes]) -> bool:
        """Whether an expression may depend on a changed object, by what its names stand for."""
        code = getattr(compute, "__code__", None)
        if code is None or any(type(constant) is type(code) for constant in code.co_consts):
            return True
        space = compute.__globals__
        values = [space[name] for name in code.co_names if name in space]
        try:
            values += [cell.cell_contents for cell in compute.__closure__ or ()]
        except ValueError:  # a name that has no value yet
            return True
        for value in values:
            if type(value) in _PLAIN or isinstance(value, ModuleType):
                continue
            if getattr(value, "__module__", None) == "builtins":
                continue
            number = self.common.numbers.get(id(value))
            if number is None:
                if not (isinstance(value, (list, tuple)) and self._holds_plain(value)):
                    return True
            elif not changed.keys().isdisjoint(self.common.reachable([number])):
                return True
        return False

    def _holds_plain(self, value: Any) -> bool:
        """Whether a sequence that is not shared holds plain values alone."""
        if self.fixed is None or self.fixed[0] is not value:
            self.fixed = (value, all(type(item) in _PLAIN for item in value))
        return self.fixed[1]


def _fixed(value: Any) -> Any:
    """Return a value that does not change with the arguments that it is made of."""
    if isinstance(value, _COPIED):
        return copy.deepcopy(value)
    if isinstance(value, (KeysView, ValuesView, ItemsView)):
        return list(value)
    if isinstance(value, Iterator) and hasattr(type(value), "__length_hint__"):
        return iter(list(value))
    return iter(list(value)) if type(value) in (zip, map, filter, enumerate) else value
