"""The runs of a series, each in a process of its own, so that none can end the others."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Any

from posttrain.common.console import CONSOLE
from posttrain.common.lock import LOCK
from posttrain.runs.config import save_config
from posttrain.runs.resume import create_run_dir
from posttrain.runs.series.members import Member
from posttrain.runs.series.state import (
    Record,
    changes_since,
    is_done,
    new_record,
    read_state,
    resumable,
    write_record,
)

POLL = 0.1  # seconds
LONGEST_ERROR = 400
INTERRUPTED = (-signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM)

Command = Callable[[Path, Path], list[str]]
"""The command line that trains a config, given its file and the run directory."""


@dataclass
class Job:
    """A run in progress."""

    member: Member
    record: Record
    process: subprocess.Popen[bytes]
    folder: Path
    """The series' folder."""
    slot: int
    started: float = field(default_factory=time.monotonic)
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=40))
    """The last lines of its standard error."""
    reader: threading.Thread | None = None
    stopped: bool = False
    """Whether it was stopped because it does not look promising."""

    @property
    def metrics(self) -> Path:
        """The file of its metrics, which may not exist yet."""
        return self.folder / self.record.run / "metrics.jsonl"

    def stop(self) -> None:
        """End a run that is not worth finishing."""
        self.stopped = True
        self.send(signal.SIGTERM)

    def send(self, number: int) -> None:
        """Send a signal to the process, which has not been waited for yet."""
        if self.process.returncode is None:
            os.kill(self.process.pid, number)


@dataclass(frozen=True)
class Runner:
    """How the runs of a series are started."""

    folder: Path
    command: Command
    locks: list[int]
    """Descriptors that hold the series' lock; each process keeps them open."""
    num_jobs: int = 1
    """Runs at the same time."""
    watch: Callable[[Job], None] = lambda job: None
    """Called several times a second for each run in progress."""
    done: Callable[[Member, Record], None] = lambda member, record: None
    """Called when a run has ended, with its record."""


def run_all(runner: Runner, upcoming: Iterator[Member]) -> None:
    """Train the members as they come; those that finished before are not trained again.

    One that was interrupted resumes from its newest checkpoint, and one that failed starts there
    too, or from the beginning if it has none. Ctrl-C and SIGTERM reach the runs, are waited for,
    and end the series with KeyboardInterrupt.
    """
    jobs: list[Job] = []
    signals: list[int] = []
    more = True
    with _stopping(jobs, signals):
        while jobs or (more and not signals):
            while more and not signals and len(jobs) < runner.num_jobs:
                member = next(upcoming, None)
                more = member is not None
                if member is not None and (job := _begin(runner, member, jobs)) is not None:
                    jobs.append(job)
            for job in list(jobs):
                if not signals:
                    runner.watch(job)
                if (record := _ended(job, bool(signals))) is not None:
                    jobs.remove(job)
                    runner.done(job.member, record)
            time.sleep(POLL if jobs else 0)
    if signals:
        raise KeyboardInterrupt


@contextmanager
def _stopping(jobs: list[Job], signals: list[int]) -> Iterator[None]:
    """Note SIGINT and SIGTERM in `signals`, and end the runs if an error ends the series.

    A terminal sends SIGINT to the runs as well; SIGTERM is passed on to them. A second signal
    raises KeyboardInterrupt at once.
    """

    def note(number: int, frame: Any) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(number)
        CONSOLE.print("stopping: waiting for the runs in progress", markup=False)
        if number == signal.SIGTERM:
            for job in jobs:
                job.send(number)

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    except Exception:
        for job in jobs:
            job.send(signal.SIGTERM)
        for job in jobs:
            while job.process.returncode is None and _ended(job, True) is None:
                time.sleep(POLL)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _begin(runner: Runner, member: Member, jobs: list[Job]) -> Job | None:
    """Start the process of a member's run; report an earlier one that finished, and return None."""
    folder = runner.folder
    record = read_state(folder)[1].get(member.label)
    if record is not None and is_done(folder, record) and not changes_since(record, member):
        CONSOLE.print(f"{member.label}: {record.state} before, in {record.run}", markup=False)
        runner.done(member, record)
        return None
    record, config = begin_record(folder, member, record)
    file = folder / "configs" / f"{member.label}.yaml"
    file.parent.mkdir(exist_ok=True)
    save_config(config.config, file)
    slot = min(set(range(runner.num_jobs)) - {job.slot for job in jobs})
    alone = runner.num_jobs == 1
    if alone:
        CONSOLE.rule(member.label)
    else:
        CONSOLE.print(f"{member.label}: started in {record.run}", markup=False)
    log = folder / "logs" / f"{member.label}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as out:
        process = subprocess.Popen(
            runner.command(file, folder / record.run),
            stdin=subprocess.DEVNULL,
            stdout=None if alone else out,
            stderr=subprocess.PIPE,
            env=environment(slot, runner.num_jobs),
            pass_fds=runner.locks,
        )
    record.pid = process.pid
    write_record(folder, member.label, record)
    job = Job(member, record, process, folder, slot)
    job.reader = threading.Thread(target=_read_errors, args=(job, log, alone), daemon=True)
    job.reader.start()
    return job


def begin_record(folder: Path, member: Member, before: Record | None) -> tuple[Record, Member]:
    """Return the record of a run that begins, written, and the member with what it resumes from.

    Without a checkpoint of the same config, an earlier run directory is replaced.
    """
    same = before is not None and not changes_since(before, member)
    run_dir = resumable(folder, before) if before is not None and same else None
    if before is not None and run_dir is not None:
        record = replace(before, state="running", error=None, pid=os.getpid())
    else:
        if before is not None and same and before.run:
            shutil.rmtree(folder / before.run, ignore_errors=True)
        for left in folder.glob(f"{escape(member.label)}_*/"):  # by a call that was killed
            remove_empty(left)
        record = new_record(member, create_run_dir(member.config.trainer).name)
        record.pid = os.getpid()
    write_record(folder, member.label, record)
    if run_dir is None:
        return record, member
    CONSOLE.print(f"{member.label}: resumes in {record.run}", markup=False)
    trainer = member.config.trainer.model_copy(update={"resume_from_checkpoint": str(run_dir)})
    return record, replace(member, config=member.config.model_copy(update={"trainer": trainer}))


def remove_empty(run_dir: Path) -> None:
    """Remove a run directory to which nothing was written."""
    if run_dir.is_dir() and {file.name for file in run_dir.iterdir()} <= {LOCK}:
        shutil.rmtree(run_dir)


def environment(slot: int, num_jobs: int) -> dict[str, str]:
    """Return the environment of a run: its share of the cores, and its GPU, in turn."""
    env = dict(os.environ)
    if num_jobs == 1:
        return env
    env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_jobs)))
    visible = env.get("CUDA_VISIBLE_DEVICES")
    devices = (
        [name for name in visible.split(",") if name.strip()]
        if visible is not None
        else [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    )
    if devices:
        env["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return env


def _read_errors(job: Job, log: Path, shown: bool) -> None:
    """Copy the standard error of a run into its log, and to this process's if it is `shown`."""
    assert job.process.stderr is not None
    with log.open("ab") as out:
        for line in job.process.stderr:
            out.write(line)
            out.flush()
            text = line.decode(errors="replace")
            job.errors.append(text.strip())
            if shown:
                sys.stderr.write(text)
                sys.stderr.flush()


def _ended(job: Job, stopping: bool) -> Record | None:
    """Return the record of a run that has ended, written; None while it goes on."""
    process = job.process
    if process.returncode is None:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid == 0:
            return None
        process.returncode = os.waitstatus_to_exitcode(status)
        scale = 1 if sys.platform == "darwin" else 1024
        job.record.memory = max(job.record.memory or 0, usage.ru_maxrss * scale)
    if job.reader is not None:
        job.reader.join(timeout=5)  # a grandchild may hold the pipe
    record, code = job.record, process.returncode
    record.seconds = round(record.seconds + time.monotonic() - job.started, 1)
    record.pid = None
    if job.stopped:
        record.state = "pruned"
    elif code == 0:
        record.state = "finished"
    elif stopping or code in INTERRUPTED:
        record.state = "interrupted"
    else:
        record.state, record.error = "failed", error_line(job.errors, code, record.memory)
        remove_empty(job.folder / record.run)
    write_record(job.folder, job.member.label, record)
    return record


def error_line(lines: deque[str], code: int, memory: int | None) -> str:
    """Return in one line why a process failed: its own words, or the signal that ended it."""
    if code < 0:
        name = signal.Signals(-code).name
        used = f" when it had used up to {memory / 2**30:.1f} GiB" if memory else ""
        killed = f"ended by {name}{used}"
        if -code == signal.SIGKILL:
            return f"{killed}: the machine may have run out of memory"
        return killed
    own = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = own or [line for line in lines if line]
    text = last[-1] if last else f"exit code {code}, without a word"
    return text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]} ..."
