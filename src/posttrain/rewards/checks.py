"""Checks of the data by a reward, before training."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable


class RowFault(ValueError):
    """What is wrong with one row of the data."""

    def __init__(self, index: int, fault: str) -> None:
        super().__init__(fault)
        self.index = index
        """The row's position among the rows that were checked."""


def check_each(check: Callable[[dict[str, Any]], None], rows: Sequence[dict[str, Any]]) -> None:
    """Raise RowFault for the first row for which `check` raises ValueError."""
    for index, row in enumerate(rows):
        try:
            check(row)
        except ValueError as error:
            raise RowFault(index, str(error)) from None


@runtime_checkable
class Checked(Protocol):
    """A reward that also checks the data before training and adds facts to the run's record."""

    def check_rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """Raise RowFault for the first row that the reward cannot judge."""

    def about(self) -> dict[str, Any]:
        """Return facts for the run's record."""
