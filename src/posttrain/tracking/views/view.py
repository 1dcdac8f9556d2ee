"""What a tracker's view of a run is made of, and what it may know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from posttrain.common.secrets import HIDDEN, IN_ADDRESS
from posttrain.tracking.config import TrackingConfig

State = Literal["finished", "failed", "killed"]
"""How a run ended; killed if it left no word."""


@dataclass(frozen=True)
class Line:
    """A line of metrics.jsonl."""

    number: int
    """From 0."""
    step: int
    time: float
    """Seconds since 1970."""
    metrics: dict[str, float]


@dataclass(frozen=True)
class Facts:
    """What a tracker receives of a run in addition to its metrics. Nothing in it is secret."""

    run_dir: Path
    id: str
    """Random letters and digits, the same in every part of a resumed run."""
    settings: TrackingConfig
    config: dict[str, Any]
    """The resolved config, without passwords in addresses."""
    commit: str | None = None
    """The commit of the repository that the run was started in."""
    end_within: int = 0
    """Seconds that the tracker has after the end of the run; 0 is as long as it takes."""

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return self.run_dir.name

    @property
    def method(self) -> str:
        """The training method; empty if there is no config."""
        return str((self.config.get("trainer") or {}).get("type", ""))


class View(Protocol):
    """An open tracker. It gets all lines of the file in order, also those that it has already."""

    def add(self, lines: Sequence[Line]) -> None:
        """Record the lines that the tracker does not have yet."""

    def close(self, state: State) -> None:
        """Record how the run ended, and return when everything has arrived."""


@dataclass(frozen=True)
class Tracker:
    """An entry of the registry of trackers."""

    packages: tuple[str, ...]
    """The distributions of the extra."""
    open: Callable[[Facts], View]
    """Return the view of a run. A store of this run alone is emptied; another one is continued."""
    check: Callable[[TrackingConfig], None]
    """Raise ValueError if a setting, variable or login is missing."""
    variables: tuple[str, ...] = ()
    """How the names of the variables begin that the tracker reads, also from .env files."""
    secrets: Callable[[TrackingConfig], tuple[str, ...]] = lambda settings: ()
    """Return how the names of the secret ones begin: none for a store in the run's folder."""
    environment: Callable[[Path], dict[str, str]] = lambda run_dir: {}
    """Return variables to set before the library is imported, unless they are set already."""


def without_passwords(value: Any) -> Any:
    """Return a config with *** for the user and password of every address."""
    if isinstance(value, dict):
        return {key: without_passwords(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_passwords(item) for item in value]
    return IN_ADDRESS.sub(f"{HIDDEN}@", value) if isinstance(value, str) else value
