"""Errors about a setting, which the library names by its field."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SettingError(ValueError):
    """A wrong value of a setting.

    The message begins with the field's name. A caller that knows what the user wrote, such as a key
    of a section or an option of the command line, replaces the name with that: see `renamed`.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field, self.problem = field, problem

    def renamed(self, field: str) -> SettingError:
        """Return the same error with another name of the setting."""
        return SettingError(field, self.problem)

    def at(self, where: str) -> SettingError:
        """Return the same error with the file and row in which it occurred."""
        return SettingError(self.field, f"{where}: {self.problem}")


@contextmanager
def without_section(name: str) -> Iterator[None]:
    """Name keys of a recipe's section by the key alone, for callers who have no recipe."""
    try:
        yield
    except SettingError as error:
        raise error.renamed(error.field.removeprefix(f"{name}.")) from None
