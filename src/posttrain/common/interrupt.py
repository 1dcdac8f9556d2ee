"""Signals that ask a run to stop: it finishes its step and saves before it leaves."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_WITHIN = 120.0
"""Seconds from SIGTERM, after which the machine is about to be taken away, to the end."""


class Interrupted(Exception):
    """A run was asked to stop, and has saved; the message says how to resume it."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.code = 128 + signum
        """The exit code that shells give a program that a signal ended."""


@contextmanager
def listening() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the first signal to stop, SIGINT or SIGTERM; 0 before one.

    A second SIGINT raises KeyboardInterrupt wherever the program is. After SIGTERM the process ends
    within STOP_WITHIN seconds, whatever it does. Outside the main thread, where Python handles no
    signals, it yields a function that returns 0.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    received: list[int] = []
    limit = threading.Timer(STOP_WITHIN, _give_up)
    limit.daemon = True

    def handle(signum: int, frame: FrameType | None) -> None:
        if not received:
            received.append(signum)
            again = "; Ctrl-C again stops at once" if signum == signal.SIGINT else ""
            _warn(f"stopping after this step, with a checkpoint{again}")
        elif signum == signal.SIGINT:
            signal.default_int_handler(signum, frame)
        if signum == signal.SIGTERM and limit.ident is None:
            limit.start()

    before = {
        number: signal.signal(number, handle)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN  # a job in the background, or nohup
    }
    try:
        yield lambda: received[0] if received else 0
    finally:
        limit.cancel()
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _give_up() -> None:
    _warn(f"the step did not end within {STOP_WITHIN:.0f} s of SIGTERM: resume from the checkpoint")
    os._exit(128 + signal.SIGTERM)


def _warn(text: str) -> None:
    # print is not reentrant: the signal may have come while the program was printing
    os.write(2, f"\n{text}\n".encode())
