"""The known name that is nearest to a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: object, known: Iterable[str]) -> str | None:
    """Return the name in `known` that `name` is most likely a typo of, or None."""
    return next(iter(difflib.get_close_matches(str(name), list(known), n=1)), None)


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "known") -> str:
    """Return "did you mean X?", or "<otherwise>: " with all of `known` if nothing is near."""
    known = list(known)
    near = nearest(name, known)
    return f"did you mean {near}?" if near else f"{otherwise}: {', '.join(known)}"
