"""The runs below a folder, as the page lists them, each read again only when its files change."""

from __future__ import annotations

import itertools
import logging
import os
import statistics
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posttrain.common.lock import is_written
from posttrain.runs.listing import (
    Listed,
    is_number,
    is_step,
    last_lines,
    read,
    read_info,
    read_settings,
    run_folders,
)
from posttrain.tracking.report import OF_LABELS, flatten

log = logging.getLogger(__name__)

SCAN_EVERY = 1.0  # seconds between two looks for new folders
AGAIN_AFTER = 0.2  # seconds before an unknown name leads to another look
SIZE_EVERY = 10.0  # seconds between two readings of a run that is being written
PATIENCE = 0.7  # seconds of reading in one request
WINDOW = 50  # steps from which the time left is estimated
MOST_SETTINGS = 50_000  # of one run, lists counted by their items
SIGNS = (".", "run.json", "config.yaml", "metrics.jsonl")  # ".": checkpoints come and go

Json = dict[str, Any]
Signature = tuple[Any, ...]


@dataclass
class Entry:
    """A run as it was last read."""

    signature: Signature
    run: Json
    version: int
    read_at: float
    has_size: bool
    """Whether its size was counted since it last changed."""


@dataclass
class Catalogue:
    """The runs below `root`."""

    root: Path
    entries: dict[str, Entry] = field(default_factory=dict)
    gone: dict[str, int] = field(default_factory=dict)
    """Version at which each run that disappeared was missed."""
    version: int = 0
    complete: bool = False
    scanned_at: float = 0.0
    folders: dict[str, Path] = field(default_factory=dict)
    next: str = ""
    """The run at which the last look ran out of time."""

    def refresh(self) -> None:
        """Look for runs that are new, have changed or are gone, for PATIENCE seconds at most."""
        begun = time.monotonic()
        if begun - self.scanned_at < SCAN_EVERY and self.complete:
            return
        folders = run_folders(self.root) if self.root.is_dir() else []
        self.folders = {name_of(folder, self.root): folder for folder in folders}
        for name in self.entries.keys() - self.folders.keys():
            del self.entries[name]
            self.version += 1
            self.gone[name] = self.version
        self.complete = True
        # where patience ended the last time, it goes on: among very many runs all have their turn
        names = list(self.folders)
        begin = names.index(self.next) if self.next in self.folders else 0
        self.next = ""
        for name in names[begin:] + names[:begin]:
            if time.monotonic() - begun > PATIENCE:
                self.complete, self.next = False, name
                break
            self._read(name, self.folders[name])
        self.scanned_at = time.monotonic()

    def changes(self, since: int | None) -> Json:
        """Return the runs that changed after a version, or all, and those that disappeared."""
        self.refresh()
        after = -1 if since is None or since > self.version else since
        return {
            "root": str(self.root),
            "version": self.version,
            "complete": self.complete,
            "runs": [entry.run for entry in self.entries.values() if entry.version > after],
            "gone": [name for name, version in self.gone.items() if version > after],
        }

    def folder(self, name: str) -> Path:
        """Return the folder of a run. Raise KeyError if there is no such run."""
        if name not in self.folders and time.monotonic() - self.scanned_at > AGAIN_AFTER:
            self.scanned_at, self.complete = 0.0, False
            self.refresh()
        return self.folders[name]

    def total_bytes(self) -> int:
        """Return the bytes of all runs, as they were last read."""
        return sum(entry.run["bytes"] for entry in self.entries.values())

    def users_of(self, folder: Path) -> list[str]:
        """Return the runs whose settings name a folder, or something in it: they start from it."""
        places = {os.path.abspath(folder), str(folder.resolve())}
        inside = tuple(f"{place}/" for place in places)
        return [
            name
            for name, entry in self.entries.items()
            if self.folders.get(name) != folder
            and any(
                f"{os.path.abspath(value)}/".startswith(inside)
                for value in entry.run["settings"].values()
                if folder.name in value
            )
        ]

    def _read(self, name: str, folder: Path) -> None:
        entry = self.entries.get(name)
        written = is_written(folder)
        signature: Signature = (written, *(sign(folder / file) for file in SIGNS))
        now = time.monotonic()
        # the size of a run takes a walk through its folder
        recent = entry is not None and now - entry.read_at < SIZE_EVERY
        if entry is not None and entry.signature == signature and (entry.has_size or recent):
            return
        known = entry.run["bytes"] if recent and entry is not None else None
        try:
            run = described(name, read(folder, known))
        except OSError:
            return  # it is being deleted
        except Exception as error:  # one damaged run must not hide the others
            log.warning("%s could not be read: %s: %s", folder, type(error).__name__, error)
            return
        self.version += 1
        self.gone.pop(name, None)
        read_at = entry.read_at if recent and entry is not None else now
        self.entries[name] = Entry(signature, run, self.version, read_at, known is None)


def described(name: str, listed: Listed) -> Json:
    """Return what the page shows of a run in the list."""
    folder = listed.folder
    info = read_info(folder)
    lines = last_lines(folder / "metrics.jsonl")
    metrics: dict[str, float] = {}
    labelled = False
    for line in lines:
        for key, value in line.items():
            if OF_LABELS.match(key):
                labelled = True
            elif is_number(value) and key not in ("step", "time"):
                metrics[key] = value
    running = listed.state == "running"
    started = moment(info.get("started"))
    seconds = info.get("seconds")
    if started is not None and listed.state in ("running", "killed"):
        # run.json says how long a run took when it ends: one that was killed had no time to
        seconds = max(0.0, (time.time() if running else listed.updated) - started)
    return {
        "id": name,
        "name": folder.name,
        "group": name.rpartition("/")[0],
        "method": listed.method,
        "model": listed.model,
        "state": listed.state,
        "step": listed.step,
        "num_steps": listed.num_steps,
        "metric": listed.metric,
        "value": listed.value,
        "bytes": listed.num_bytes,
        "updated": listed.updated,
        "started": started,
        "seconds": seconds if is_number(seconds) else None,
        "left": seconds_left(lines, listed) if running else None,
        "error": listed.error,
        "settings": flat_settings(folder),
        "metrics": metrics,
        "has": {
            "samples": any(f.stat().st_size for f in folder.glob("samples*.jsonl")),
            "classification": labelled or listed.method == "classification",
        },
    }


def flat_settings(folder: Path) -> dict[str, str]:
    """Return a run's settings by dotted name; none if they are damaged, or without an end."""
    settings = read_settings(folder)
    left: list[Any] = [settings]
    count = 0
    while left:  # a YAML file can hold a part a million times, or within itself
        part = left.pop()
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        left += inner
        count += 1
        if count > MOST_SETTINGS:
            return {}
    return flatten(settings)


def seconds_left(lines: list[Json], listed: Listed) -> float | None:
    """Return how long the rest of a run will take at the pace of its last steps, or None.

    Pauses, in which the run was stopped, do not count.
    """
    times: dict[int, float] = {}
    for line in lines:
        if is_step(line.get("step")) and is_number(line.get("time")):
            times[line["step"]] = line["time"]  # with an evaluation, that is the end of it
    recent = sorted(times.items())[-WINDOW - 1 :]
    paces = [(b - a) / (n - m) for (m, a), (n, b) in itertools.pairwise(recent)]
    if listed.num_steps is None or not paces:
        return None
    usual = statistics.median(paces)
    counted = [pace for pace in paces if pace <= 100 * usual]
    return max(0.0, (listed.num_steps - listed.step) * statistics.fmean(counted))


def name_of(folder: Path, root: Path) -> str:
    """Return a run's name: its path below the root, "." for the root itself."""
    return folder.relative_to(root).as_posix()


def sign(file: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file does; None without a file."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def moment(text: Any) -> float | None:
    """Return a time in seconds since 1970 from ISO 8601, or None."""
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
