"""Judges programs that read stdin and write stdout, on the lane's side."""

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from posttrain.sandbox import room
from posttrain.sandbox.extract import script_of
from posttrain.sandbox.isolation import Sandbox
from posttrain.sandbox.room import Room
from posttrain.sandbox.tester import Verdict

# Runs a program with an input; returns its verdict ("correct" for status 0) and its output.
Run = Callable[[str, bytes], tuple[str, str]]


def judge_program(job: dict[str, Any], limits: dict[str, Any], place: Room, run: Run) -> Verdict:
    """Return the verdict on a job of form "program"; `place` is where the completion is read."""
    cases = list(zip(job["inputs"], job["outputs"]))
    fault, program = extracted(job["completion"], limits, place)
    if fault:
        return Verdict(fault, 0, len(cases), "Python cannot parse the completion")
    if not program.strip():
        return Verdict("no_code", 0, len(cases), "no Python in the completion")
    problem: Verdict | None = None
    passed, free = 0, job.get("free", ())
    for number, (stdin, expected) in enumerate(cases, 1):
        verdict, stdout = run(program, stdin.encode(errors="surrogatepass"))
        if verdict == "correct" and normalised(stdout) != normalised(expected):
            verdict = "wrong"
        passed += verdict == "correct" and number - 1 not in free
        if verdict != "correct":
            problem = problem or Verdict(verdict, detail=f"input {number}")
            if not job["partial"]:
                break
    if problem is None:
        return Verdict("correct", len(cases), len(cases))
    counted = len(cases) - len(free)
    return Verdict(problem.verdict, min(passed, max(counted - 1, 0)), counted, problem.detail)


def normalised(text: str) -> list[str]:
    """Return the lines without white space at their ends, and without empty lines at the end."""
    return [line.rstrip() for line in text.rstrip().split("\n")]


def free_outputs(inputs: Sequence[str], outputs: Sequence[str]) -> list[int]:
    """Return the numbers of the cases that say nothing of a program.

    Their output is one that a stub prints, the input itself, or expected of another input as well,
    so that a program that always prints the same passes them.
    """
    wanted = [tuple(normalised(output)) for output in outputs]
    stubs = {tuple(normalised(text)) for text in ("", "0", "1", "[]", "None", "True")}
    return [
        i
        for i, output in enumerate(wanted)
        if output in stubs or output == tuple(normalised(inputs[i])) or wanted.count(output) > 1
    ]


def extracted(completion: str, limits: dict[str, Any], place: Room) -> tuple[str, str]:
    """Return "" and the program of a completion, or the verdict on one that cannot be read.

    A process of its own reads it, with limits and without rights: what breaks Python's parser must
    not end or enter the lane.
    """
    report, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            room.enter(place, (write_end,), limits["cpu_seconds"])
            data = memoryview(b"=" + script_of(completion).encode(errors="surrogatepass"))
            while data:
                data = data[os.write(write_end, data) :]
        finally:
            os._exit(0)
    os.close(write_end)
    deadline = time.monotonic() + limits["wall_seconds"]
    answer = bytearray()
    is_late = False
    while not is_late:
        left = max(0.0, deadline - time.monotonic())
        is_late = not select.select([report], [], [], left)[0]
        part = b"" if is_late else os.read(report, 1 << 20)
        answer += part
        if not part:
            break
    os.close(report)
    if is_late:
        os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    if is_late or usage.ru_utime + usage.ru_stime >= limits["cpu_seconds"] - 0.05:
        return "timeout", ""
    if not answer:
        return ("died" if os.WIFSIGNALED(status) else "memory"), ""
    return "", answer[1:].decode(errors="surrogatepass")


def exchange(sandbox: Sandbox, limit: int, seconds: float) -> tuple[bytes, bool]:
    """Return what a program writes to stdout, and whether it ended in time.

    More than `limit` bytes of output end the exchange early, as not in time.
    """
    deadline = time.monotonic() + seconds
    stdout = bytearray()
    while (left := deadline - time.monotonic()) > 0:
        readable, _, _ = select.select([sandbox.stdout, sandbox.pidfd, 0], [], [], left)
        if 0 in readable:
            sys.exit()
        # of a program that has ended, all that it wrote is in the pipe
        has_ended = sandbox.pidfd in readable
        is_open = True
        while is_open and len(stdout) <= limit:
            try:
                part = os.read(sandbox.stdout, 65536)
            except BlockingIOError:
                break
            stdout += part
            is_open = bool(part)
        if len(stdout) > limit:
            return bytes(stdout), False
        if not is_open:  # stdout is closed, but the process may continue
            left = max(0.0, deadline - time.monotonic())
            return bytes(stdout), bool(select.select([sandbox.pidfd], [], [], left)[0])
        if has_ended:
            return bytes(stdout), True
    return bytes(stdout), False
