"""The trainer's side: lanes that judge completions in parallel.

Nothing untrusted runs in this process: it sends rows to lanes (`lane.py`) and reads their verdicts.
Lanes are started with subprocess, never by forking, and end with the process that started them.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.sandbox.tester import Verdict

STRONG = ("bubblewrap", "namespace")  # strongest first; a weaker level has to be named by the user
STARTUP_SECONDS = 60.0
SLACK_SECONDS = 30.0  # a lane enforces the limits itself; only a stuck lane exceeds them by this

Lane = subprocess.Popen[str]


@dataclass
class Pool:
    """Lanes of one isolation level with the same limits."""

    level: str
    open: str
    """What this level leaves open and a stronger one prevents; "" at the levels in `STRONG`."""
    limits: dict[str, Any]
    workers: int
    lanes: list[Lane] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


_pools: list[Pool] = []


def open_pool(isolation: str | None, limits: dict[str, Any], workers: int) -> Pool:
    """Return a pool at an isolation level that works here, with its first lane started.

    Args:
        isolation: The name of a level, or None for the strongest of `STRONG` that works.
        limits: wall_seconds, cpu_seconds, memory_mib, processes, file_mib, output_bytes.

    Raises:
        ValueError: The level (or each of `STRONG`) does not work on this machine, and why.
    """
    causes = []
    for level in (isolation,) if isolation else STRONG:
        lane, greeting = _start_lane(level, limits)
        if greeting["ready"]:
            pool = Pool(level, greeting["open"], limits, workers, [lane])
            _pools.append(pool)
            return pool
        _end(lane)
        causes.append(f"{level}: {greeting['cause']}")
    raise ValueError(
        f"code_execution cannot isolate programs on this machine ({'; '.join(causes)}). Install "
        "bubblewrap (apt-get install bubblewrap) and allow unprivileged user namespaces (sysctl "
        "user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns), or, if there is "
        "nothing to harm on this machine, accept limits without isolation: isolation: process"
    )


def judge(pool: Pool, jobs: Sequence[dict[str, Any]]) -> list[Verdict]:
    """Return the verdicts of `jobs`, in order.

    A job on which a lane ends twice, while other lanes work, has the verdict "died": no completion
    ends a run.

    Raises:
        RuntimeError: Lanes end whatever their job is.
    """
    with pool.lock:
        missing = min(pool.workers, len(jobs)) - len(pool.lanes)
        pool.lanes += [_ready_lane(pool) for _ in range(missing)]
        batch = _Batch(jobs, iter(range(len(jobs))), {})
        # daemon threads: a program that ends in the middle does not wait for them
        threads = [
            threading.Thread(target=_work, args=(pool, number, batch), daemon=True)
            for number in range(min(len(pool.lanes), len(jobs)))
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException:  # Ctrl-C: no lane may answer the next batch with this one's verdict
            batch.stopped = True
            close(pool)
            raise
    if batch.failure is not None:
        raise batch.failure
    return [batch.verdicts[i] for i in range(len(jobs))]


@dataclass
class _Batch:
    """The jobs of one call of `judge`, shared by its threads."""

    jobs: Sequence[dict[str, Any]]
    unclaimed: Iterator[int]
    """Indices of the jobs that no thread has begun."""
    verdicts: dict[int, Verdict]
    failure: Exception | None = None
    stopped: bool = False


def _work(pool: Pool, number: int, batch: _Batch) -> None:
    """Judge jobs on one lane until none is left."""
    try:
        for index in batch.unclaimed:
            job = batch.jobs[index]
            reply = ""
            for _attempt in (1, 2):
                reply = _ask(pool.lanes[number], json.dumps(job), _patience(pool, job))
                if reply or batch.stopped:
                    break
                _end(pool.lanes[number])
                pool.lanes[number] = _ready_lane(pool)
            if batch.stopped or batch.failure is not None:
                return
            if reply:
                batch.verdicts[index] = Verdict(**json.loads(reply))
            else:
                check_lane(pool.lanes[number], pool)
                batch.verdicts[index] = Verdict("died", detail="the lane ended twice on this row")
    except Exception as error:
        batch.failure = error


def check_lane(lane: Lane, pool: Pool) -> None:
    """Raise RuntimeError if a lane does not judge a simple program."""
    job = {"form": "asserts", "tests": ["assert f(1) == 2"], "setup": "", "partial": False}
    job["completion"] = "def f(x): return x + 1"
    reply = _ask(lane, json.dumps(job), _patience(pool, job))
    if not reply or json.loads(reply)["verdict"] != "correct":
        raise RuntimeError(
            "a lane of the sandbox ended on two rows in a row, or misjudges a simple program: is "
            "this machine out of memory or processes?"
        )


def _patience(pool: Pool, job: dict[str, Any]) -> float:
    """Return the seconds after which a lane that has not answered counts as stuck."""
    num_runs = len(job["inputs"]) if job["form"] == "program" else 1
    seconds: float = num_runs * (pool.limits["wall_seconds"] + 1) + SLACK_SECONDS
    return seconds


def _ready_lane(pool: Pool) -> Lane:
    lane, greeting = _start_lane(pool.level, pool.limits)
    if not greeting["ready"]:
        _end(lane)
        raise RuntimeError(f"{pool.level} worked before, but no longer: {greeting['cause']}")
    return lane


def _start_lane(level: str, limits: dict[str, Any]) -> tuple[Lane, dict[str, Any]]:
    package = str(Path(__file__).resolve().parents[2])
    # -P keeps the working directory off the path; -I would also drop numpy, which tests may need
    lane = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "posttrain.sandbox.lane"),
            json.dumps({"level": level, "limits": limits}),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env={
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": package,
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        },
        start_new_session=True,  # Ctrl-C is for the trainer to handle
    )
    greeting = _ask(lane, None, STARTUP_SECONDS)
    return lane, json.loads(greeting or '{"ready": false, "cause": "the lane does not answer"}')


def _ask(lane: Lane, line: str | None, seconds: float) -> str:
    """Return the lane's reply; "" if it died or was killed for taking too long."""
    assert lane.stdin is not None
    assert lane.stdout is not None
    timer = threading.Timer(seconds, lane.kill)  # this ends a blocked read or write, too
    timer.start()
    try:
        if line is not None:
            lane.stdin.write(line + "\n")
            lane.stdin.flush()
        return lane.stdout.readline()
    except (OSError, ValueError):  # it died, or another thread closed its pipes
        return ""
    finally:
        timer.cancel()


def _end(lane: Lane) -> None:
    """End a lane by closing its stdin, upon which it ends its sandboxes and itself."""
    assert lane.stdin is not None
    assert lane.stdout is not None
    with suppress(OSError):
        lane.stdin.close()
    try:
        lane.wait(10)
    except subprocess.TimeoutExpired:
        lane.kill()
        lane.wait()
    lane.stdout.close()  # only now: a thread that is still reading from it holds its lock


def close(pool: Pool) -> None:
    """End the pool's lanes. The next call of `judge` starts new ones."""
    lanes, pool.lanes = pool.lanes, []
    for lane in lanes:
        _end(lane)


def _close_all() -> None:
    for pool in _pools:
        close(pool)


def _forget_after_fork() -> None:
    """Forget the parent's lanes after a fork; close their pipes, which would keep them alive."""
    for pool in _pools:
        pool.lock = threading.Lock()
        for lane in pool.lanes:
            for pipe in (lane.stdin, lane.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
        pool.lanes = []


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
