"""Faults put in on purpose, as edits of a function's source."""

from __future__ import annotations

import inspect
import textwrap


def edit(patch, function, old, new):
    """Puts `new` for `old`, which stands once in the function's source."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__name__} holds {old!r} {source.count(old)} times"
    made: dict = {}
    exec(source.replace(old, new), function.__globals__, made)
    # the function itself, since modules that import it have names of their own for it
    for part in ("__code__", "__kwdefaults__"):
        patch.setattr(function, part, getattr(made[function.__name__], part))
