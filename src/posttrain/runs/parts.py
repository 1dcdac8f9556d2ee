"""A file that is written in parts, by several ranks, and is whole or absent.

Parts are files in a folder beside it. A part is written at once, so that a killed process loses no
more than the parts it was at, and the same command makes the others. What decides the contents is
noted beside the parts and, once the file is whole, beside the file.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.common.errors import SettingError
from posttrain.common.files import replacing, sha256, write_text
from posttrain.evaluation.store import differing

POLL_SECONDS = 0.2  # between two looks for the parts of other ranks


@dataclass(frozen=True)
class Parts:
    """A file in parts. Errors name it as the field `output`."""

    file: Path
    count: int
    """Number of parts that make the file."""

    @property
    def folder(self) -> Path:
        """The folder of the parts."""
        return self.file.with_name(f"{self.file.name}.parts")

    @property
    def record(self) -> Path:
        """The file that says what the whole file was made of."""
        return self.file.with_name(f"{self.file.name}.json")

    def part(self, number: int) -> Path:
        """Return the file of a part."""
        return self.folder / f"{number:06}.jsonl"

    def missing(self) -> list[int]:
        """Return the numbers of the parts that are not written yet."""
        return [number for number in range(self.count) if not self.part(number).is_file()]

    def made_of(self) -> dict[str, Any]:
        """Return the facts that the file, or what is there of it, was made of; empty if none."""
        record = _read(self.record) if self.file.exists() else None
        begun = record["made_of"] if record else _read(self.folder / "made_of.json")
        return begun or {}

    def is_whole(self, facts: Mapping[str, Any]) -> bool:
        """Return whether the file is whole.

        Raises SettingError if it is another one, or was made or begun with other facts; a fact
        that is not given is not compared.
        """
        if self.file.exists():
            record = _read(self.record)
            if record is None:
                raise _not_ours(self.file)
            _compare(self.file, record["made_of"], facts)
            if record["sha256"] != sha256(self.file):
                raise SettingError(
                    "output",
                    f"{self.file} was changed after it had been written: give another, or move it",
                )
            return True
        begun = _read(self.folder / "made_of.json")
        if begun is not None:
            _compare(self.folder, begun, facts)
        elif self.folder.exists() and not _is_empty(self.folder):
            raise _not_ours(self.folder)
        return False

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Make the folder of the parts, and note what decides them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "made_of.json", json.dumps(facts, indent=1))

    def wait(self, check: Callable[[], None]) -> None:
        """Wait until all parts are written; other ranks may still be at theirs.

        No collective, since these have a time limit and parts have none. `check`, called again and
        again, raises an error if the other ranks are gone."""
        while self.missing():
            check()
            time.sleep(POLL_SECONDS)

    def wait_for_file(self, check: Callable[[], None]) -> None:
        """Wait, in another rank, until rank 0 has joined the parts; for the same reason so."""
        while not self.file.exists():
            check()
            time.sleep(POLL_SECONDS)

    def lines(self) -> Iterator[str]:
        """Yield the lines of all parts in order, with their line ends."""
        for number in range(self.count):
            with self.part(number).open(encoding="utf-8") as part:
                yield from part

    def join(self, facts: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        """Write the whole file and the record of what it was made of; remove the parts."""
        with replacing(self.file) as temporary:
            with temporary.open("w", encoding="utf-8") as out:
                out.writelines(self.lines())
            record = {"made_of": facts, "sha256": sha256(temporary), **summary}
            # before the file itself, which without its record would be taken for a foreign one
            write_text(self.record, json.dumps(record, indent=1))
        self.clean()

    def clean(self) -> None:
        """Remove the parts of a file that is whole."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _not_ours(place: Path) -> SettingError:
    return SettingError("output", f"{place} was not written by this command: give another")


def _compare(place: Path, before: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    if other := differing(before, facts):
        raise SettingError(
            "output",
            f"{place} holds rows made otherwise ({'; '.join(other)}): give another, or delete it",
        )


def _is_empty(folder: Path) -> bool:
    """Whether a folder holds at most what a kill left of its first file."""
    return folder.is_dir() and all(file.name.startswith(".") for file in folder.iterdir())


def _read(file: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None if there is no such file."""
    if not file.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise SettingError("output", f"{file} is damaged ({error}): give another") from None
    return content


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder inside a with block, so that no second process writes the same parts.

    The lock ends with the process, however it ends. Raises SettingError if another one holds it.
    """
    import fcntl

    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingError(
                "output", f"another process is writing {folder}: wait for it, or give another"
            ) from None
        yield
