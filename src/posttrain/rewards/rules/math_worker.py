"""Symbolic comparison of two answers in a process that can be killed.

sympy can run for hours on a short input, and neither a thread nor a signal stops it reliably:
SIGALRM needs the main thread, and a long integer power never returns to the interpreter. So
math-verify runs in one warm child process. The parent measures the child's CPU time, so that a
verdict does not depend on the load of the machine. A child that exceeds its time is killed with
SIGKILL and reaped, and the next call starts a fresh one.

This is the parent's side. The child runs `answers.symbolic.serve`.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from posttrain.common.secrets import without_secrets
from posttrain.rewards.rules.answers.symbolic import Conventions

STARTUP_SECONDS = 60.0  # imports of sympy and math-verify on a cold disk
PATIENCE = 10  # a child that gets too little CPU is killed after this many times its seconds
_SOURCES = Path(__file__).resolve().parents[3]
VERDICTS = ("correct", "wrong", "unparseable_prediction", "unparseable_gold", "timeout")


class _Child:
    """The warm child process, owned by the process that started it."""

    def __init__(self) -> None:
        self.killed = False
        # The package's own folder is put last on the child's path, where it hides nothing.
        program = (
            f"import sys; sys.path.append({str(_SOURCES)!r})\n"
            "from posttrain.rewards.rules.answers.symbolic import serve; serve()"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=without_secrets(),
            start_new_session=True,  # Ctrl-C is for the parent to handle
        )
        greeting = self._within(STARTUP_SECONDS, None)
        if greeting != "ready":
            self.kill()
            raise RuntimeError(f"the math checker's worker did not start: {greeting or 'no reply'}")

    def ask(self, request: dict[str, Any], timeout: float) -> str | None:
        """Return the child's reply; None if it died.

        A child that died or was killed must be replaced. It may have been killed just after its
        reply: check `killed` also if there is a reply.
        """
        return self._within(timeout, json.dumps(request).encode() + b"\n")

    def _within(self, timeout: float, line: bytes | None) -> str | None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(timeout, over), daemon=True)
        watch.start()
        try:
            if line is not None:
                self.process.stdin.write(line)
                self.process.stdin.flush()
            reply = self.process.stdout.readline()
        except OSError:
            reply = b""
        finally:
            over.set()
            watch.join()
        return reply.decode().strip() or None

    def _watch(self, timeout: float, over: threading.Event) -> None:
        """Kill the child after `timeout` seconds of CPU time, unless `over` is set before.

        Its death closes its pipes, which ends a blocked write as well as a blocked read.
        """
        began, before = time.monotonic(), _cpu_seconds(self.process.pid)
        left = timeout
        while not over.wait(left):
            waited, now = time.monotonic() - began, _cpu_seconds(self.process.pid)
            used = waited if before is None or now is None else now - before
            left = min(timeout - used, PATIENCE * timeout - waited)
            if left <= 0:
                self.killed = True
                self.process.kill()
                return

    def kill(self) -> None:
        """End the child and reap it."""
        self.process.kill()
        self.process.wait()
        self.close_pipes()

    def close_pipes(self) -> None:
        """Close this process's ends of the child's pipes."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):  # unsent bytes of a request whose reader is gone
                    pipe.close()


def _cpu_seconds(pid: int) -> float | None:
    """Return the CPU time that a process has used; None if /proc does not tell."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


_lock = threading.Lock()
_child: _Child | None = None


def compare(
    gold: str, answer: str, *, whole_text: bool, timeout: float, conventions: Conventions
) -> str:
    """Compare two answers symbolically.

    Args:
        gold: The reference answer, plain text or LaTeX.
        answer: The completion's answer, or its whole text.
        whole_text: Whether `answer` is prose, of which the last formula is the answer.
        timeout: Limit of this comparison, in seconds of CPU time. Starting the child is not
            counted.
        conventions: What counts as equal.

    Returns:
        One of `VERDICTS`. "timeout" also stands for a child that hit its memory limit or crashed.

    Raises:
        RuntimeError: The child cannot start, for example because math-verify is not installed.
    """
    global _child
    request: dict[str, Any] = {
        "gold": gold,
        "answer": answer,
        "whole_text": whole_text,
        "seconds": timeout,
    }
    request["conventions"] = asdict(conventions)
    with _lock:
        if _child is None:
            _child = _Child()
        healthy = False
        try:
            verdict = _child.ask(request, timeout)
            healthy = verdict in VERDICTS and not _child.killed
        finally:  # also on KeyboardInterrupt: a late reply must not answer the next question
            if not healthy:
                _child.kill()
                _child = None
    return verdict if verdict in VERDICTS else "timeout"


def close() -> None:
    """End the child process, if there is one. The next comparison starts a new one."""
    global _child
    with _lock:
        if _child is not None:
            _child.kill()
            _child = None


def _forget_after_fork() -> None:
    """Forget the parent's child after a fork, and close its pipes, which would keep it alive."""
    global _child, _lock
    _lock = threading.Lock()
    if _child is not None:
        _child.close_pipes()
        _child = None


atexit.register(close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
