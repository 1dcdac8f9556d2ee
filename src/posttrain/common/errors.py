"""Errors that name the setting they are about, in no interface's words."""

from __future__ import annotations


class SettingError(ValueError):
    """A setting with a wrong value.

    The message begins with the setting's field name. Whoever knows what the user wrote (a section
    of a recipe, an option of the command line) can say it in those words: see `renamed`.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field, self.problem = field, problem

    def renamed(self, field: str) -> SettingError:
        """Return the same error about what the user calls the setting."""
        return SettingError(field, self.problem)

    def at(self, where: str) -> SettingError:
        """Return the same error, with the file and row at which it was met."""
        return SettingError(self.field, f"{where}: {self.problem}")
