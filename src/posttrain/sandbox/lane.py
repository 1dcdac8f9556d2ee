"""One lane: a small trusted process that judges one completion after another.

It starts the next sandbox while the current one works, so that a fresh process for every verdict
costs no waiting. It has no torch and no data except the current row, and enforces the time limits.
It does not run a test itself: each row's tests get a process of their own, forked from here.

    python -m posttrain.sandbox.lane SETTINGS    a JSON job per line in, a JSON verdict per line out
"""

import importlib
import json
import os
import re
import select
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from posttrain.sandbox import confine, isolation, room
from posttrain.sandbox.frames import write_frame
from posttrain.sandbox.guard import guard
from posttrain.sandbox.isolation import Ending, Sandbox
from posttrain.sandbox.room import Room
from posttrain.sandbox.script import MEMORY_STATUS
from posttrain.sandbox.session import Session, over_channel
from posttrain.sandbox.shared import Common
from posttrain.sandbox.stdin_programs import exchange, judge_program
from posttrain.sandbox.stubs import measure
from posttrain.sandbox.tester import Report, Verdict, run_tests
from posttrain.sandbox.view import Unavailable, View, system_view
from posttrain.sandbox.wire import encode

REPORT = 1 << 16  # bytes of a report, which a pipe takes in one piece
GRACE = 2.0  # seconds for tests to end after their candidate was stopped, or for it to end itself

# Returns what it can do and no candidate may do; run as a candidate before the first job.
_PROBE = """
def probe():
    import os
    def works(action, *arguments):
        try:
            action(*arguments)
        except OSError:
            return False
        return True
    def fork():
        if os.fork() == 0:
            os._exit(0)
    found = []
    if works(fork):
        found.append("can start processes")
    try:
        import _socket
        if works(_socket.socket):
            found.append("can open sockets")
    except ImportError:
        pass
    places = ("", "/tmp", "/home", "/dev", ".")
    if any(works(os.open, place + "/probe", os.O_CREAT | os.O_RDWR) for place in places):
        found.append("can write files")
    if works(os.stat, "/proc/1") or works(os.stat, "/etc/passwd"):
        found.append("sees the system's files")
    if os.getuid() != 65534:
        found.append("is user %d" % os.getuid())
    return found
"""


@dataclass
class Lane:
    """The settings of this lane, and the processes that it has started."""

    level: str
    limits: dict[str, Any]
    view: View
    room: Room
    """Where the tests run."""
    ready: Sandbox | None = None
    """The sandbox of the next program, started ahead of time."""
    current: Sandbox | None = None
    """The sandbox in use."""
    tester: int | None = None
    """Process id of the running tests."""

    def take(self) -> Sandbox:
        """Return the sandbox for the next program, which becomes the current one."""
        self.current = self.ready or isolation.start(self.level, self.view)
        self.ready = None
        return self.current

    def end(self, patience: float = 0.0) -> Ending:
        """End the current sandbox; see `isolation.finish`."""
        assert self.current is not None
        ending = isolation.finish(self.current, patience)
        self.current = None
        return ending

    def end_tester(self) -> None:
        """Kill and reap the tests, if any are running."""
        if self.tester is not None:
            os.kill(self.tester, signal.SIGKILL)
            os.waitpid(self.tester, 0)
            self.tester = None

    def end_all(self) -> None:
        """End the tests and both sandboxes."""
        self.end_tester()
        for sandbox in (self.current, self.ready):
            if sandbox is not None:
                isolation.finish(sandbox)

    def prepare(self) -> None:
        """Start the next sandbox, unless it is ready."""
        if self.ready is None:
            self.ready = isolation.start(self.level, self.view)

    @property
    def kernel_limits(self) -> dict[str, int]:
        """The limits that the candidate's process sets on itself by setrlimit."""
        mebi = 1 << 20
        limits = {
            "RLIMIT_CPU": self.limits["cpu_seconds"],
            "RLIMIT_AS": self.limits["memory_mib"] * mebi,
            "RLIMIT_STACK": 64 * mebi,
            "RLIMIT_FSIZE": self.limits["file_mib"] * mebi,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 1,  # with 0, a handler of crashes would still be started
        }
        # Linux counts them per user namespace since 5.14; before, together with the user's others.
        release = tuple(int(n) for n in os.uname().release.split("-")[0].split(".")[:2])
        if self.level != "process" and release >= (5, 14):
            limits["RLIMIT_NPROC"] = (
                self.limits["processes"] + isolation.OTHER_PROCESSES[self.level]
            )
        return limits


def check_level(lane: Lane) -> str:
    """Start a sandbox, and check from inside that it isolates.

    Returns:
        What the level "process" leaves open; "" at the other levels.

    Raises:
        Unavailable: The sandbox does not start, or leaves something open at another level.
    """
    if lane.level == "bubblewrap":
        isolation.bubblewrap_path()
    errors, write_end = os.pipe()
    sandbox = isolation.start(lane.level, lane.view, error=write_end)
    os.close(write_end)
    # A level that does not work ends at once; if one hangs, the trainer's side kills the lane.
    session = Session(over_channel(sandbox.channel, 1 << 20))
    try:
        breaches = session.load(_PROBE, ["probe"], lane.kernel_limits)["probe"]()
    except Exception as error:
        isolation.finish(sandbox, 1.0)
        lines = os.read(errors, 4096).decode(errors="replace").strip().splitlines()
        raise Unavailable(lines[-1] if lines else f"{type(error).__name__}: {error}") from None
    finally:
        os.close(errors)
    isolation.finish(sandbox)
    of_tests = room.check(lane.room)
    if (breaches or of_tests) and lane.level != "process":
        who = "the candidate " if breaches else "a test "
        raise Unavailable(who + ", ".join(breaches or of_tests))
    return ", ".join([*breaches, *(f"a test {breach}" for breach in of_tests)])


def judge(lane: Lane, job: dict[str, Any]) -> dict[str, Any]:
    """Return the verdict on one job, as a dict."""
    if job["form"] == "program":
        run = partial(_run_program, lane)
        return asdict(judge_program(job, lane.limits, lane.room, run))
    preload(job)
    measures = job["completion"] is None
    sandbox = None if measures else lane.take()
    report, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _be_tester(lane, job, sandbox, write_end)
            status = 0
        finally:
            os._exit(status)
    lane.tester = pid
    os.close(write_end)
    lane.prepare()
    deadline = time.monotonic() + lane.limits["wall_seconds"]
    late = not _wait(report, deadline)
    if late and sandbox is not None:
        ending = lane.end()
        _wait(report, time.monotonic() + GRACE)
    text = _drain(report)
    lane.end_tester()
    os.close(report)
    verdict = _verdict(text, job) or Verdict(
        "timeout" if late else "memory", detail="the tests did not end"
    )
    if sandbox is None:
        return asdict(verdict)
    if not late:
        ending = lane.end(GRACE if verdict.verdict == "died" else 0.0)
    if late and verdict.verdict == "correct":  # it was ready at the last moment
        late = False
    if late or verdict.verdict == "died":
        verdict.verdict = _cause(lane, ending, late)
    return asdict(verdict)


def preload(job: dict[str, Any]) -> None:
    """Load numpy here if the tests use it; else the process of each row's tests would load it."""
    text = " ".join([job.get("test", ""), job.get("setup", ""), *job.get("tests", [])])
    if "numpy" not in sys.modules and re.search(r"\b(numpy|np)\b", text):
        for name in ("numpy", "numpy.testing"):
            with suppress(ImportError):
                importlib.import_module(name)


def _be_tester(lane: Lane, job: dict[str, Any], sandbox: Sandbox | None, report: int) -> None:
    """Run the tests, in the forked process, in a sandbox of their own."""
    keep = (report,) if sandbox is None else (report, sandbox.channel)
    room.enter(lane.room, keep, lane.limits["cpu_seconds"] + 5)
    guard()
    try:
        if sandbox is None:
            answer = asdict(measure(job))
        else:
            session = Session(over_channel(sandbox.channel, lane.limits["output_bytes"]))
            answer = asdict(run_tests(job, session, lane.kernel_limits))
    except BaseException as error:  # a strange value that breaks something here gains nothing
        kind = "memory" if isinstance(error, MemoryError) else "error"
        answer = asdict(Report(kind, detail=type(error).__name__))
    for name, value in answer.items():
        if isinstance(value, list):  # of truth values: a digit each, for the bound of `REPORT`
            answer[name] = "".join(str(int(item)) for item in value)
    os.write(report, json.dumps(answer).encode() + b"\n")


def _verdict(text: bytes, job: dict[str, Any]) -> Verdict | None:
    """Return the verdict that the tests' report amounts to; None if it is not whole."""
    if not text.endswith(b"\n"):
        return None
    report = json.loads(text)
    if "fault" in report:
        kind = "bad_test" if report["fault"] else "correct"
        free = [i for i, digit in enumerate(report["free"]) if digit == "1"]
        return Verdict(kind, report["most"], len(report["free"]), report["fault"], free)
    uncounted = set(job.get("free", ()))
    passed = [digit == "1" for i, digit in enumerate(report["passed"]) if i not in uncounted]
    kind = report["verdict"]
    if kind == "correct":
        return Verdict(kind, len(passed), len(passed))
    most = max(len(passed) - 1, 0)
    return Verdict(kind, min(sum(passed), most), len(passed), report["detail"])


def _wait(report: int, deadline: float) -> bool:
    """Wait until the tests have ended (True) or the deadline (False); exit if the trainer ends."""
    while (left := deadline - time.monotonic()) > 0:
        readable = select.select([report, 0], [], [], left)[0]
        if report in readable:
            return True
        if 0 in readable:  # no job comes before the last one's verdict, so the trainer is gone
            sys.exit()
    return False


def _drain(report: int) -> bytes:
    """Return what is in the pipe, without waiting, up to its limit."""
    os.set_blocking(report, False)
    try:
        return os.read(report, REPORT)
    except BlockingIOError:
        return b""


def _cause(lane: Lane, ending: Ending, late: bool) -> str:
    """Return the verdict on a candidate that was stopped or ended before its tests did."""
    # the time that the kernel compares with the limit may be ahead of the time that it reports
    out_of_time = ending.status == 128 + signal.SIGXCPU
    if late or out_of_time or ending.cpu_seconds >= lane.limits["cpu_seconds"] - 0.05:
        return "timeout"
    return "memory" if ending.status == MEMORY_STATUS else "died"


# --- programs that read stdin and write stdout ----------------------------------------------------


def _run_program(lane: Lane, program: str, stdin: bytes) -> tuple[str, str]:
    """Run a program in a fresh sandbox; return its verdict ("correct" for status 0) and stdout."""
    sandbox = lane.take()
    unsent = memoryview(stdin)
    while unsent:
        unsent = unsent[os.write(sandbox.stdin, unsent) :]
    job = {"mode": "program", "program": program, "limits": lane.kernel_limits}
    try:
        write_frame(sandbox.channel, encode(Common(), job)[0])
    except OSError:
        lane.end()
        return "died", ""
    lane.prepare()
    limit = lane.limits["output_bytes"]
    stdout, ended = exchange(sandbox, limit, lane.limits["wall_seconds"])
    ending = lane.end()
    if len(stdout) > limit:
        return "output", ""
    if not ended:
        return "timeout", ""
    if ending.status:
        return ("error" if ending.status == 1 else _cause(lane, ending, False)), ""
    return "correct", stdout.decode(errors="replace")


def main() -> None:
    """Check the level, announce the result, and judge jobs until stdin is closed."""
    settings = json.loads(sys.argv[1])
    confine.adopt_orphans()
    lane: Lane | None = None
    try:
        level = settings["level"]
        the_room = room.open_room(level)
        lane = Lane(level, settings["limits"], system_view(level), the_room)
        open_ = check_level(lane)
        lane.prepare()
        print(json.dumps({"ready": True, "open": open_}), flush=True)
    except (Unavailable, OSError) as error:
        print(json.dumps({"ready": False, "cause": str(error)}), flush=True)
        return
    try:
        for line in iter(sys.stdin.readline, ""):
            print(json.dumps(judge(lane, json.loads(line))), flush=True)
    finally:
        lane.end_all()


if __name__ == "__main__":
    main()
