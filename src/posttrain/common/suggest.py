"""The known name that is nearest to a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: object, known: Iterable[str]) -> str | None:
    """Return the name in `known` that `name` most likely stands for, or None.

    That is the same name in other case, else the shortest that has `name` as a whole word or as
    its beginning (math for math_correctness), else the one of which it is most likely a typo. The
    order of `known` does not matter: it may be a set.
    """
    names, text = sorted(known), str(name).casefold()
    for candidate in names:
        if candidate.casefold() == text:
            return candidate
    longer = [
        candidate
        for candidate in names
        if text in candidate.casefold().split("_")
        or (len(text) > 2 and candidate.casefold().startswith(text))
    ]
    if longer:
        return min(longer, key=len)
    return next(iter(difflib.get_close_matches(str(name), names, n=1)), None)


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "known") -> str:
    """Return "did you mean X?", or "<otherwise>: " with all of `known` if nothing is near."""
    known = list(known)
    near = nearest(name, known)
    return f"did you mean {near}?" if near else f"{otherwise}: {', '.join(known)}"
