"""The candidate's side: runs inside the sandbox, next to the model's program.

Nothing in this process is trusted: the program can read and change all of it. It gains nothing by
that, since no expected value ever comes here; a forged reply is one more way to return a wrong
value.

This file and `wire.py` arrive over the channel, so both import only the standard library. The first
message says what to run. For a program of functions, each further message is one operation,
answered by one reply that repeats its number and the nonce.
"""

import os
import resource
import sys
from typing import Any

from posttrain.sandbox.wire import decode, encode, read_frame, write_frame

LARGEST = 1 << 30  # bytes of a message from the trusted side
MESSAGE = 500  # characters of an exception's text that are passed on


def main(channel: int) -> None:
    """Run what the first message says, and never return."""
    job = decode(read_frame(channel, LARGEST), _no_object)
    for name, value in job["limits"].items():
        # at the soft limit of processor time comes SIGXCPU, which no other cause of an end sends
        hard = value + 1 if name == "RLIMIT_CPU" else value
        resource.setrlimit(getattr(resource, name), (value, hard))
    if job["mode"] == "program":
        os.close(channel)
        _run_program(job["program"])
    os.dup2(2, 0)
    os.dup2(2, 1)
    _serve(channel, job)


def _no_object(number: int) -> Any:
    raise ValueError(f"no object {number}")


def _new_module(name: str) -> Any:
    module = type(sys)(name)
    sys.modules[name] = module
    return module


def _run_program(text: str) -> None:
    """Run a program that reads stdin and writes stdout, as `python program.py` would."""
    main_module = _new_module("__main__")
    try:
        exec(compile(text, "program.py", "exec"), main_module.__dict__)
    except MemoryError:
        os._exit(99)  # MEMORY_STATUS in lane.py
    sys.exit(0)


def _serve(channel: int, job: dict[str, Any]) -> None:
    module = _new_module("candidate")
    objects: list[Any] = []

    def refer(thing: Any) -> int:
        objects.append(thing)
        return len(objects) - 1

    def load() -> dict[str, Any]:
        exec(compile(job["program"], "candidate.py", "exec"), module.__dict__)
        return {name: vars(module)[name] for name in job["names"] if name in vars(module)}

    operation: Any = ("load",)
    number = 0
    while True:
        changed: Any = None
        try:
            kind = operation[0]
            value: Any
            if kind == "load":
                value = load()
            elif kind == "call":
                value = operation[1](*operation[2], **operation[3])
                if value is None:
                    changed = operation[2]
            elif kind == "get":
                value = getattr(operation[1], operation[2])
            elif kind == "set":
                setattr(operation[1], operation[2], operation[3])
                value = None
            elif kind == "iter":
                value = iter(operation[1])
            else:
                value = next(operation[1])
            reply = encode((job["nonce"], number, True, value, changed), refer)
        except BaseException as error:
            names = [c.__name__ for c in type(error).__mro__]
            text = str(error)[:MESSAGE] if isinstance(error, Exception) else ""
            reply = encode((job["nonce"], number, False, names, text), refer)
        write_frame(channel, reply)
        number += 1
        operation = decode(read_frame(channel, LARGEST), objects.__getitem__)
