"""Which positions of a prompt are edited: the first f and the last l, each of them once."""

from __future__ import annotations

import re
from dataclasses import dataclass

PATTERN = re.compile(r"f(\d+)\+l(\d+)|f(\d+)|l(\d+)")


@dataclass(frozen=True)
class Positions:
    """The number of edited positions at each end of a prompt."""

    first: int
    last: int

    def __str__(self) -> str:
        ends = (f"f{self.first}" if self.first else "", f"l{self.last}" if self.last else "")
        return "+".join(end for end in ends if end)

    def split(self, length: int) -> tuple[range, range]:
        """Return the edited positions at the start and at the end of a prompt of `length` tokens.

        A prompt of fewer than f + l tokens is divided between the two in proportion, the share of
        the end rounded up and each at least one token: no position is edited twice, and none of a
        short prompt is left out. The one token of a prompt of one token is its end.
        """
        wanted = self.first + self.last
        if length >= wanted:
            return range(self.first), range(length - self.last, length)
        suffix = -(-length * self.last // wanted)
        if self.first and suffix == length > 1:
            suffix -= 1
        return range(length - suffix), range(length - suffix, length)


def parse_positions(text: str) -> Positions:
    """Return the positions in a text such as f7+l7, f1 or l1; raise ValueError for any other."""
    match = PATTERN.fullmatch(text.strip())
    both_first, both_last, first, last = (int(n or 0) for n in match.groups()) if match else [0] * 4
    positions = Positions(both_first + first, both_last + last)
    if positions.first + positions.last == 0:
        raise ValueError(
            f"positions {text!r}: expected the first and the last tokens of the prompt, for "
            "example f7+l7, f1 or l1"
        )
    return positions
