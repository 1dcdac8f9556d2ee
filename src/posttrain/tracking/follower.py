"""The run's side of its trackers: a process for each, whose failure never ends the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from posttrain.common.files import write_text
from posttrain.common.secrets import hide, is_secret, without_secrets
from posttrain.tracking.config import TrackingConfig
from posttrain.tracking.follow import END_WITHIN, tracker_folder
from posttrain.tracking.views import tracker_named
from posttrain.tracking.views.view import Tracker

SOON = 10.0
"""Seconds that a run waits for a tracker without a word."""


@dataclass
class Follower:
    """A process that shows a run in a tracker."""

    name: str
    run_dir: Path
    process: subprocess.Popen[str]
    end_within: int
    """Seconds that the tracker has after the end of the run; 0 is as long as it takes."""

    def problem(self) -> str | None:
        """Return in one line that the process has ended before the run, and why; else None."""
        return None if self.process.poll() is None else self._lost()

    def tell(self, state: str) -> None:
        """Say how the run has ended: finished, failed or interrupted."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(state)
            self.process.stdin.close()
        except BrokenPipeError:
            pass

    def finish(self, say: Callable[[str], None] = print) -> str | None:
        """Wait for the end of a process that was told; return in one line what went wrong."""
        limit = self.end_within + 10 if self.end_within else None
        try:
            if limit is not None and not self._ends_within(SOON):
                say(f"waiting for {self.name}, at most {self.end_within} s; Ctrl-C leaves it")
            self._ends_within(limit)
        finally:
            self.stop()
        return None if self.process.returncode == 0 else self._lost()

    def _ends_within(self, seconds: float | None) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        """End the process, with what it has started, if it has not ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _lost(self) -> str:
        try:
            text = log_of(self.run_dir, self.name).read_text(errors="replace").strip()
        except OSError as error:
            text = str(error)
        reason = text.splitlines()[-1] if text else "no reason given"
        if self.process.returncode in (-signal.SIGALRM, -signal.SIGKILL):
            reason = f"not everything had arrived {self.end_within} s after the end"
        elif self.process.returncode < 0:
            reason = f"its process crashed with signal {-self.process.returncode}"
        return (
            f"{self.name} does not show this run completely ({reason[:300]}): "
            "`posttrain track` adds what is missing"
        )


def log_of(run_dir: Path, name: str) -> Path:
    """Return the file that the output of a tracker's library goes to."""
    return tracker_folder(run_dir, name) / "log.txt"


def start(
    run_dir: Path, name: str, settings: TrackingConfig | None, end_within: int = END_WITHIN
) -> Follower:
    """Start to show a run in a tracker. Raises OSError if no process can be started."""
    tracker = tracker_named(name)
    log = log_of(run_dir, name)
    log.parent.mkdir(parents=True, exist_ok=True)
    settings = settings or TrackingConfig()
    text = settings.model_dump_json()
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                f"{__package__}.follow",
                str(run_dir),
                name,
                text,
                str(end_within),
            ],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env=tracker.environment(run_dir) | variables_of(tracker, settings),
            start_new_session=True,  # Ctrl-C is for the run, which says when it ends
        )
    return Follower(name, run_dir, process, end_within)


def variables_of(tracker: Tracker, settings: TrackingConfig) -> dict[str, str]:
    """Return the environment of a tracker's process: of secrets only those that it needs."""
    own = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(tracker.variables) and not is_secret(name) and hide(value) == value
    }
    return without_secrets(*tracker.secrets(settings)) | own


def save_commit(run_dir: Path) -> None:
    """Write the commit of the repository that the run is started in, if there is one."""
    file = run_dir / "trackers" / "commit.json"
    if file.exists():
        return
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
            env=without_secrets(),
        )
    except (OSError, subprocess.TimeoutExpired):
        return
    if done.returncode == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({"commit": done.stdout.strip()}))


def start_all(
    run_dir: Path, names: Iterable[str], settings: TrackingConfig | None
) -> tuple[list[Follower], list[str]]:
    """Start the run's trackers; return them, and a line for each that could not be started."""
    followers, problems = [], []
    for name in dict.fromkeys(names):
        try:
            save_commit(run_dir)
            followers.append(start(run_dir, name, settings))
        except OSError as error:
            problems.append(f"{name} does not show this run: {error}")
    return followers, problems
