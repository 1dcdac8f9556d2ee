"""Metrics that differ between two runs of one recipe: times, rates and memory."""

from __future__ import annotations

import re
from typing import Any

MEASURED = re.compile(r"time|per_second|memory/")


def repeatable(line: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a line that another run of the same recipe has, too."""
    return {name: value for name, value in line.items() if not MEASURED.search(name)}
