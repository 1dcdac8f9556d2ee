"""Runs a program that reads stdin and writes stdout, as `python program.py < input` would.

This file is part of the candidate's process and arrives there over the channel (see `child.py`).
What it adds is what a program finds elsewhere and would miss in the sandbox: `exit` and `quit`
(the interpreter runs without `site`), and paths such as /dev/stdin (there is no /dev).
"""

import _thread
import builtins
import io
import os
import resource
import sys
from typing import Any

PATH = "/home/program.py"
MEMORY_STATUS = 99  # exit status for a program that ran out of memory
_STREAMS = ("stdin", "stdout", "stderr")
_DESCRIPTORS = {f"/dev/{name}": number for number, name in enumerate(_STREAMS)}
_DESCRIPTORS |= {f"{folder}/fd/{n}": n for folder in ("/dev", "/proc/self") for n in range(3)}


def run_script(text: str) -> None:
    """Run a program as the module __main__, and end this process."""
    _provide()
    module = type(sys)("__main__")
    vars(module).update(__file__=PATH, __builtins__=builtins)
    sys.modules["__main__"] = module
    sys.argv = [PATH]
    try:
        exec(compile(text, PATH, "exec"), vars(module))
    except MemoryError:
        os._exit(MEMORY_STATUS)
    sys.exit(0)


def _provide() -> None:
    """Add what programs expect to find."""
    for name in ("exit", "quit"):
        setattr(builtins, name, _leave)
    open_file, open_descriptor = io.open, os.open
    stack_size, set_limit = _thread.stack_size, resource.setrlimit

    def open_(file: Any, *args: Any, **kwargs: Any) -> Any:
        number = _DESCRIPTORS.get(_path(file))
        return open_file(file if number is None else os.dup(number), *args, **kwargs)

    def os_open(path: Any, *args: Any, **kwargs: Any) -> int:
        number = _DESCRIPTORS.get(_path(path))
        return open_descriptor(path, *args, **kwargs) if number is None else os.dup(number)

    def stack_size_(size: int = 0) -> int:
        # a thread with a stack beyond the memory limit would not start
        memory, _ = resource.getrlimit(resource.RLIMIT_AS)
        return stack_size(size if memory < 0 else min(size, memory // 4))

    def setrlimit(which: int, limits: Any) -> None:
        if which != resource.RLIMIT_STACK:  # calls of Python functions need no larger one
            set_limit(which, limits)

    # Not the functions themselves: as attributes of a class, they would become methods.
    builtins.open = io.open = open_.__call__  # type: ignore[operator]
    os.open = os_open.__call__  # type: ignore[operator]
    _thread.stack_size = stack_size_
    resource.setrlimit = setrlimit


def _path(file: Any) -> str:
    """Return a path as text; "" if it is none."""
    try:
        return os.fsdecode(file)
    except TypeError:
        return ""


def _leave(code: Any = None) -> None:
    """End the program, as the functions that `site` defines do."""
    raise SystemExit(code)
