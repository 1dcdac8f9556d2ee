"""Runs the tests of a row against stubs, before any completion is judged.

A stub returns None, [], 0, "", True or its argument. What it passes says nothing about a program,
so it earns no partial credit; and tests that cannot run by themselves are found here, not by a
program.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from posttrain.sandbox.child import Served, answer, perform
from posttrain.sandbox.lending import Unsendable
from posttrain.sandbox.session import Session
from posttrain.sandbox.shared import Common
from posttrain.sandbox.tester import Report, asserts_code, check_code, explain, run_tests
from posttrain.sandbox.wire import decode

SECONDS = 1.0  # of processor time, for each stub
_RETURNS = ("None", "next(iter((*arguments, *named.values())), None)", "[]", "0", "''", "True")
# What tests raise by themselves, whatever the results of the functions they call.
_OWN_FAULTS = (ImportError, NameError, Unsendable)


class _OutOfTime(BaseException):
    pass


@dataclass
class Measure:
    """What stubs show of the tests of a row."""

    fault: str = ""
    """Why they do not run, whatever the candidate does."""
    free: list[bool] = field(default_factory=list)
    """Whether a stub passes it, for each test."""
    most: int = 0
    """Number of tests that one stub passes."""


def measure(job: dict[str, Any]) -> Measure:
    """Run the tests of a job against each stub.

    Args:
        job: A job of form "check" or "asserts", as for `run_tests`. Without `partial`, the first
            two stubs are enough to see whether the tests run.
    """
    try:
        if job["form"] == "check":
            names = check_code(job["prompt"], job["entry_point"], job["test"], True).names
        else:
            names = asserts_code(job["setup"], tuple(job["tests"])).names
    except Exception as error:
        return Measure(explain(error)[1])
    if names.unknown:
        listed = ", ".join(sorted(names.unknown))
        return Measure(f"they use {listed} and nothing defines it: import or define it in them")
    free: list[bool] = []
    most = 0
    for value in _RETURNS if job["partial"] else _RETURNS[:2]:
        functions = [f"def {n}(*arguments, **named): return {value}" for n in names.candidate]
        session = _served_here()
        stub = job | {"completion": "\n".join(functions), "partial": True}
        report, fault = _run(stub, session)
        if report.verdict == "bad_test":
            return Measure(report.detail)
        if fault is not None:
            return Measure(explain(fault)[1])
        most = max(most, sum(report.passed))
        free = [a or b for a, b in zip_longest(free, report.passed, fillvalue=False)]
    return Measure("", free, most)


def _run(job: dict[str, Any], session: Session) -> tuple[Report, BaseException | None]:
    problems: list[BaseException] = []
    try:
        with _limited(SECONDS):
            report = run_tests(job, session, {}, problems)
    except _OutOfTime:
        return Report("timeout"), None
    own = [p for p in problems if isinstance(p, _OWN_FAULTS) and not hasattr(p, "_stand_in")]
    return report, next(iter(own), None)


def _served_here() -> Session:
    """Return a session whose candidate runs in this process."""
    served: list[Served] = []

    def exchange(message: bytes) -> bytes:
        if not served:
            served.append(Served(decode(Common(), message), _no_exchange))
            served[0].namespace = {"__name__": "candidate"}
            return perform(served[0], "load")
        return answer(served[0], message)

    return Session(exchange)


def _no_exchange(message: bytes) -> bytes:
    raise EOFError


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise _OutOfTime in this block after so many seconds of processor time."""

    def stop(number: int, frame: Any) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
