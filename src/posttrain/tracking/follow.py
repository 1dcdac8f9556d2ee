"""The process that shows a run's metrics.jsonl in one tracker, while the file grows.

    python -m posttrain.tracking.follow RUN NAME SETTINGS END_WITHIN

The run writes a word to the standard input when it ends. If it dies without one, what it wrote
still reaches the tracker. After a failure the program starts again, with the first line of the
file, since a tracker takes only what it lacks. The last failure is the last line of the log.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from posttrain.common.files import write_text
from posttrain.common.lock import writing
from posttrain.common.secrets import hide
from posttrain.tracking.config import TrackingConfig
from posttrain.tracking.report import read_config, read_json
from posttrain.tracking.views import tracker_named
from posttrain.tracking.views.view import Facts, Line, State, without_passwords

LOOK_EVERY = 0.5  # seconds
END_WITHIN = 120
"""Seconds that a tracker has after the end of the run."""
RETRY_AFTER = (5.0, 60.0, 300.0)
"""Seconds before an attempt after a failure; then the run goes on without this tracker."""
LINES_AT_ONCE = 2000
STATES: dict[str, State] = {"finished": "finished", "failed": "failed"}
"""What becomes of the run's last word; a run without one, or interrupted, is killed."""


def tracker_folder(run_dir: Path, name: str) -> Path:
    """Return the folder of a run with what is to remember about one of its trackers."""
    return run_dir / "trackers" / name


@dataclass
class Reader:
    """The lines of a file that grows, from its start; a resumed run writes another file."""

    path: Path
    file: BinaryIO = field(init=False)
    number: int = 0

    def __post_init__(self) -> None:
        self.file = self.path.open("rb")

    def is_replaced(self) -> bool:
        """Return whether the run has been resumed, so that another process shows it."""
        return os.fstat(self.file.fileno()).st_ino != self.path.stat().st_ino

    def next_lines(self) -> list[Line]:
        """Return the next complete lines, at most LINES_AT_ONCE; none if there are no more yet."""
        lines: list[Line] = []
        while len(lines) < LINES_AT_ONCE:
            start = self.file.tell()
            raw = self.file.readline()
            if not raw.endswith(b"\n"):
                self.file.seek(start)
                break
            values: dict[str, Any] = json.loads(raw)
            step, moment = int(values.pop("step")), float(values.pop("time", 0.0))
            metrics = {k: float(v) for k, v in values.items() if isinstance(v, (int, float))}
            lines.append(Line(self.number, step, moment, metrics))
            self.number += 1
        return lines


@dataclass
class Run:
    """The run that is followed, and how it ended."""

    word: str = ""
    """What it has written to the standard input."""
    parent: int = field(default_factory=os.getppid)
    closed: bool = False

    def wait(self, seconds: float) -> State | None:
        """Return the run's end, or None if it has not come within some seconds."""
        if not self.closed and select.select([sys.stdin], [], [], seconds)[0]:
            part = os.read(sys.stdin.fileno(), 100).decode()
            self.word += part
            self.closed = not part
        # a process that the run has forked may keep the pipe open after the run's death
        if self.closed or os.getppid() != self.parent:
            return STATES.get(self.word.strip(), "killed")
        return None


def show(reader: Reader, facts: Facts, name: str, run: Run) -> None:
    """Open the tracker, give it all lines, and close it after the run's end."""
    view = tracker_named(name).open(facts)
    end: State | None = None
    while True:
        end = end or run.wait(0)
        lines = reader.next_lines()
        if lines:
            view.add(lines)
        elif end is not None:
            # what hangs now would keep the user waiting: the default action ends the process
            signal.alarm(facts.end_within)
            view.close(end)
            return
        else:
            run.wait(LOOK_EVERY)


def gather(run_dir: Path, name: str, settings: TrackingConfig, end_within: int) -> Facts:
    """Return what a tracker receives of a run. The id is that of an earlier part of the run.

    A copy of a folder under another name is another run, and gets an id of its own.
    """
    file = tracker_folder(run_dir, name) / "run.json"
    saved = read_json(file, dict)
    if saved.get("run") != run_dir.name:
        saved = {"run": run_dir.name, "id": secrets.token_hex(8)}
        write_text(file, json.dumps(saved))
    commit = read_json(run_dir / "trackers" / "commit.json", dict).get("commit")
    config = without_passwords(read_config(run_dir / "config.yaml"))
    return Facts(run_dir, saved["id"], settings, config, commit, end_within)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no earlier process, of a part of the run that was killed, shows the run."""
    until = time.monotonic() + 2 * END_WITHIN
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(writing(folder))
                break
            except ValueError:
                if time.monotonic() > until:
                    raise
                time.sleep(LOOK_EVERY)
        yield


def follow(run_dir: Path, name: str, settings: str, end_within: int, run: Run) -> None:
    """Show a run in a tracker until it ends."""
    reader = Reader(run_dir / "metrics.jsonl")
    with alone(tracker_folder(run_dir, name)):
        if reader.is_replaced():
            return
        parsed = TrackingConfig.model_validate_json(settings)
        facts = gather(run_dir, name, parsed, end_within)
        show(reader, facts, name, run)


def main(
    run_dir: Path, name: str, settings: str, end_within: str, failures: str = "0", word: str = ""
) -> None:
    """Follow a run; after a failure try again, and exit with 1 after the last one."""
    run, started, environment = Run(word, closed=bool(word)), time.monotonic(), dict(os.environ)
    try:
        follow(run_dir, name, settings, int(end_within), run)
    except Exception as error:
        count = 1 if time.monotonic() - started > sum(RETRY_AFTER) else int(failures) + 1
        if run.wait(0) is None and count <= len(RETRY_AFTER):
            print(hide(f"{type(error).__name__}: {error}"))
            until = time.monotonic() + RETRY_AFTER[count - 1]
            while (end := run.wait(LOOK_EVERY)) is None and time.monotonic() < until:
                pass
            sys.stdout.flush()
            # a library may not be able to open a run twice, and may leave variables behind
            again = (str(run_dir), name, settings, end_within, str(count), end or "")
            command = [*sys.orig_argv[: -len(sys.argv) + 1], *again]
            os.execve(sys.executable, command, environment)
        print(hide(traceback.format_exc()))
        print(" ".join(hide(f"{type(error).__name__}: {error}").split()), flush=True)
        os._exit(1)  # the library's own threads may hang


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), *sys.argv[2:])
