"""One side's record of the mutable values that both sides hold (`wire.py`).

Both sides run this file; it reaches the sandbox over the channel, so it imports nothing beyond the
standard library.
"""

from collections.abc import Callable, Sequence
from typing import Any


class WireError(ValueError):
    """Bytes that do not follow this file's rules, or a value that cannot be sent."""


# The classes of the files that are sent are no dataclasses: loading that module takes 10 ms of each
# verdict.
class Common:
    """One side's record of what both sides hold."""

    refer: Callable[[Any], tuple[str, Any]]
    """Return (kind, description) of an object that is not plain, or raise."""
    resolve: Callable[[str, Any], Any]
    """Return what stands for such an object, given its kind and description."""
    classes: dict[str, type]
    """Classes that both sides define, by name; their instances pass by their attributes."""
    refused: tuple[str, ...]
    """Names of containers that the other side does not have."""
    forgets: bool
    """Whether this side decides when an object is no longer shared."""
    objects: dict[int, Any]
    """The shared objects by number."""
    numbers: dict[int, int]
    """Their numbers by id."""
    contents: dict[int, bytes]
    """Their contents as last exchanged, in the form of this file."""
    parts: dict[int, list[int]]
    """Numbers of the shared objects directly in each of them."""
    dropped: list[int]
    """Numbers given up since the last message, of which the other side does not know."""
    next: int
    """The number of the next object to be shared."""

    def __init__(
        self,
        refer: Callable[[Any], tuple[str, Any]] | None = None,
        resolve: Callable[[str, Any], Any] | None = None,
        classes: dict[str, type] | None = None,
        refused: tuple[str, ...] = (),
        forgets: bool = False,
    ) -> None:
        self.refer = refer or _nothing
        self.resolve = resolve or (lambda kind, value: _nothing(value))
        self.classes = {} if classes is None else classes
        self.refused, self.forgets = refused, forgets
        self.objects, self.numbers, self.contents, self.parts = {}, {}, {}, {}
        self.dropped, self.next = [], 0

    def reachable(self, numbers: Sequence[int]) -> set[int]:
        """Return the numbers of the objects in these objects, at any depth, and their own."""
        found: set[int] = set()
        waiting = list(numbers)
        while waiting:
            number = waiting.pop()
            if number not in found:
                found.add(number)
                waiting += self.parts.get(number, [])
        return found


def _nothing(value: Any) -> Any:
    raise WireError(f"not a plain value: {type(value).__name__}")


def drop(common: Common, number: int) -> None:
    """Stop sharing an object."""
    thing = common.objects.pop(number)
    del common.numbers[id(thing)], common.contents[number], common.parts[number]
