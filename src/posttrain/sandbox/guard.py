"""Keeps a text of the candidate from running in the tests' process.

`eval`, `exec` and `compile` in a test work in the candidate's process (`tester.py`). This
guards the other ways on which Python reports: a library that compiles a text (timeit, sympify),
pickles that name functions, code objects made of parts. The tests' process is confined in any case
(`room.py`); what is refused here could otherwise say which tests passed.
"""

import sys
from typing import Any

# Modules that make code of texts of their own: named tuples, data classes, symbol tables.
_TRUSTED = frozenset({"ast", "collections", "dataclasses", "enum", "typing", "inspect", "warnings"})
_TRUSTED |= {"functools", "linecache", "symtable", "numpy", "pandas"}


def guard() -> None:
    """Refuse the above from now on in this process, for good."""
    sys.addaudithook(_check)


def _check(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _EVENTS and not _is_trusted():
        raise PermissionError(f"{event}: no text becomes code in the tests' process")


_EVENTS = ("compile", "marshal.loads", "pickle.find_class", "code.__new__", "function.__new__")


def _is_trusted() -> bool:
    """Whether code of a module that is being imported, or of one of the above, does it."""
    frame = sys._getframe(2)
    module = str(frame.f_globals.get("__name__", ""))
    if module.split(".")[0] in _TRUSTED or module.startswith("posttrain.sandbox."):
        return True
    while module not in ("test", "prompt", "setup"):
        if module in ("importlib._bootstrap", "importlib._bootstrap_external"):
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
        module = str(frame.f_globals.get("__name__", ""))
    return False
