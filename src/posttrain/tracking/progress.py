"""The progress bar of a run: in a terminal, in a notebook, or none in a file."""

from __future__ import annotations

import time
from html import escape
from typing import Any, Protocol

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from posttrain.common.console import CONSOLE, IN_NOTEBOOK

EVERY = 0.25
"""Seconds between two updates in a notebook, since each is a message to the browser."""


class ProgressBar(Protocol):
    """What a run tells its progress bar."""

    def update(self, completed: int) -> None:
        """Show that so many steps are done."""

    def stop(self) -> None:
        """End the bar, however the run ended."""


def progress_bar(description: str, total: int, completed: int = 0) -> ProgressBar:
    """Start and return a progress bar, for a run of `total` steps with some completed."""
    kind = NotebookBar if IN_NOTEBOOK else TerminalBar
    return kind(description, total, completed)


class TerminalBar:
    """A bar below the lines of the console, which disappears at the end."""

    def __init__(self, description: str, total: int, completed: int) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=CONSOLE,
            transient=True,
        )
        self.task = self.progress.add_task(description, total=total, completed=completed)
        self.progress.start()

    def update(self, completed: int) -> None:
        """Show that so many steps are done."""
        self.progress.update(self.task, completed=completed)

    def stop(self) -> None:
        """Take the bar off the console."""
        self.progress.stop()


class NotebookBar:
    """A bar of plain HTML, updated in place; it needs no widgets, and stays as it was at the end.

    Front ends without HTML show its line of text."""

    def __init__(self, description: str, total: int, completed: int) -> None:
        import IPython.display

        self.description, self.total = description, total
        self.first = self.completed = completed
        self.began = self.shown = time.monotonic()
        show: Any = IPython.display.display
        self.handle = show(self._data("starting"), raw=True, display_id=True)

    def update(self, completed: int) -> None:
        """Show that so many steps are done, unless the last update was a moment ago."""
        self.completed = completed
        now = time.monotonic()
        if now - self.shown < EVERY:
            return
        self.shown = now
        each = (now - self.began) / max(completed - self.first, 1)
        left = clock((self.total - completed) * each)
        self._show(f"{clock(now - self.began)}, left {left}")

    def stop(self) -> None:
        """Show the last step and the whole time."""
        self._show(clock(time.monotonic() - self.began))

    def _show(self, times: str) -> None:
        if self.handle is not None:  # None if IPython cannot show anything here
            self.handle.update(self._data(times), raw=True)

    def _data(self, times: str) -> dict[str, str]:
        """Return the bar by MIME type."""
        text = f"{self.description}: step {self.completed:,} of {self.total:,}, {times}"
        bar = f'<progress max="{self.total}" value="{self.completed}"></progress>'
        return {"text/html": f"<div>{bar} {escape(text)}</div>", "text/plain": text}


def clock(seconds: float) -> str:
    """Return a duration as 0:07, 12:05 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
