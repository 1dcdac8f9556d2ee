"""Parameters of which the repeats of one mechanism take their turn in make test-slow."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest


def choice(values: Iterable[Any], fast: Container[Any]) -> Any:
    """All values for parametrize, those in `fast` in the fast tests; a tuple is several values."""
    rows = [(v, v if isinstance(v, tuple) else (v,)) for v in values]
    return [pytest.param(*row, marks=() if v in fast else pytest.mark.slow) for v, row in rows]
