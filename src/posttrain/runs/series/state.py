"""The state of a series on disk: the run of each member, and the lock of who trains it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TextIO

from posttrain.common.disk import check_writable
from posttrain.common.errors import SettingError
from posttrain.common.files import sha256, write_text
from posttrain.model.folder import checkpoints_in
from posttrain.runs.config import dump
from posttrain.runs.resume import differences, free_keys, with_new_keys
from posttrain.runs.series.members import Member

STATE, LOCK = "series.json", ".series.lock"
State = Literal["waiting", "running", "finished", "failed", "interrupted", "pruned"]


@dataclass
class Record:
    """What is known of a member's run."""

    state: State
    run: str
    """The run directory's name in the series' folder."""
    config: dict[str, Any]
    """The member's config, as it was when the run began."""
    version: str
    """The version of posttrain that it began with."""
    params: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    """Why it failed, in one line."""
    seconds: float = 0.0
    """Time that its processes took, over all calls that were not themselves killed."""
    memory: int | None = None
    """Largest resident memory of its process, in bytes."""
    pid: int | None = None
    """The process that trains it; None if none does."""
    files: dict[str, str] = field(default_factory=dict)
    """The SHA-256 of each file that the config names: rows, and a reward's code."""


def resolved(member: Member) -> dict[str, Any]:
    """Return a member's config as it is read back from a file."""
    tree: dict[str, Any] = json.loads(json.dumps(dump(member.config)))
    return tree


def new_record(member: Member, run: str) -> Record:
    """Return the record of a run that begins."""
    config = resolved(member)
    record = Record("running", run, config, version("posttrain"), member.params)
    record.files = files_of(config)
    return record


def files_of(tree: Any, key: str = "") -> dict[str, str]:
    """Return the SHA-256 of each file that a key `path` of a config names."""
    if isinstance(tree, dict):
        return {k: v for name, part in tree.items() for k, v in files_of(part, name).items()}
    if isinstance(tree, list):
        return {k: v for part in tree for k, v in files_of(part, key).items()}
    if key != "path" or not isinstance(tree, str) or not Path(tree).is_file():
        return {}
    status = Path(tree).stat()
    return {tree: _digest(tree, status.st_mtime_ns, status.st_size)}


@cache
def _digest(path: str, modified: int, size: int) -> str:
    return sha256(Path(path))


def changed_files(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return in words which files of both are not the same."""
    return [f"the file {p} changed" for p, digest in before.items() if now.get(p, digest) != digest]


def read_state(folder: Path) -> tuple[dict[str, Any], dict[str, Record]]:
    """Return what the series is, and the record of each label; empty for a new series."""
    file = folder / STATE
    if not file.is_file():
        return {}, {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return content["series"], {k: Record(**v) for k, v in content["runs"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(
            f"{file} is damaged: delete it to train the whole series again, or move {folder} away"
        ) from None


def write_record(folder: Path, label: str, record: Record) -> None:
    """Set the record of a label; other processes may set those of others at the same time."""
    _change(folder, {}, {label: record})


def write_series(folder: Path, series: Mapping[str, Any]) -> None:
    """Set what the series is, beside its runs."""
    _change(folder, series, {})


def _change(folder: Path, series: Mapping[str, Any], records: Mapping[str, Record]) -> None:
    with (folder / f"{LOCK}.state").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        old, runs = read_state(folder)
        content = {
            "series": {**old, **series},
            "runs": {label: asdict(record) for label, record in {**runs, **records}.items()},
        }
        write_text(folder / STATE, json.dumps(content, indent=1) + "\n")


@contextmanager
def training(folder: Path, label: str | None = None) -> Iterator[list[int]]:
    """Hold the lock of a series, or of one label in it; yield the descriptors that hold it.

    The kernel drops a lock with the last process that holds its descriptor, however that ends, so
    a killed call leaves none behind; a child that was given the descriptors and outlives the call
    keeps it. Raises ValueError if another process holds it.
    """
    check_writable(folder, "trainer.output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        series = stack.enter_context((folder / LOCK).open("a"))
        _take(series, folder, shared=label is not None)
        handles = [series]
        if label is not None:
            handles.append(stack.enter_context((folder / f"{LOCK}.{label}").open("a")))
            _take(handles[1], folder, shared=False, label=label)
        yield [handle.fileno() for handle in handles]


def _take(handle: TextIO, folder: Path, shared: bool, label: str | None = None) -> None:
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        busy = ", ".join(
            f"{name} in process {record.pid}"
            for name, record in read_state(folder)[1].items()
            if record.state == "running" and record.pid and _lives(record.pid)
        )
        what = label or folder
        raise ValueError(
            f"{what} is being trained by another call{f' ({busy})' if busy else ''}: wait until it "
            "ends, or stop it"
        ) from None
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be locked ({error.strerror}): choose another trainer.output_dir, on "
            "a file system with locks"
        ) from None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_done(folder: Path, record: Record) -> bool:
    """Whether a run finished, or was pruned, and is still there."""
    there = (folder / record.run / "metrics.jsonl").is_file()
    return record.state in ("finished", "pruned") and there


def resumable(folder: Path, record: Record) -> Path | None:
    """Return the run directory of a run that has a checkpoint; None if it has none."""
    run_dir = folder / record.run
    return run_dir if record.run and checkpoints_in(run_dir) else None


def changes_since(record: Record, member: Member) -> list[str]:
    """Return how a member's config differs from the one that its run began with."""
    before, now = record.config, resolved(member)
    if record.version != version("posttrain"):
        before, _ = with_new_keys(before, now)
    return differences(before, now, _free_keys()) + changed_files(record.files, files_of(now))


@cache
def _free_keys() -> set[str]:
    return free_keys()


def refuse_changed(folder: Path, members: list[Member]) -> None:
    """Raise ValueError, naming them, if members have trained runs of another config."""
    records = read_state(folder)[1]
    changed = []
    for member in members:
        record = records.get(member.label)
        if record is None or not (is_done(folder, record) or resumable(folder, record)):
            continue
        if lines := changes_since(record, member):
            changed.append(f"{member.label} ({'; '.join(lines[:3])})")
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise SettingError(
            "retrain",
            f"needed to train runs of {folder} again whose config changed: "
            f"{', '.join(changed[:3])}{more}; or put the config back, or choose another "
            "trainer.output_dir",
        )
