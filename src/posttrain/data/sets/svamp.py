"""SVAMP (Patel et al. 2021, arXiv 2103.07191; MIT): 1,000 one-step word problems with traps."""

from __future__ import annotations

import math
from typing import Any

from posttrain.data.files import find_file, read_file, read_hub
from posttrain.data.origin import Origin
from posttrain.data.rows import Row, check_split, check_texts, numbered

HUB = "ChilleD/SVAMP"
ORIGIN = Origin(
    licence="MIT",
    page="https://github.com/arkilpatel/SVAMP",
    rows={"test": 1_000},
    uses=("evaluation",),
    urls=("https://raw.githubusercontent.com/arkilpatel/SVAMP/main/SVAMP.json",),
)


def load(split: str, *, path: str | None = None) -> list[Row]:
    """Rows prompt, answer, equation, and type (the operation).

    The paper made it to test models that were trained on other problems: there is a test split
    only. `path` is SVAMP.json or its folder; without it the hub is asked, which has the 1,000
    problems in two parts.
    """
    check_split("svamp", split, ("test",))
    if path is None:
        found = numbered(read_hub(HUB, "train+test"), f"{HUB} train+test")
    else:
        file = find_file(path, ("SVAMP.json",))
        found = numbered(read_file(file), file)
    rows = []
    for where, row in found:
        check_texts(row, ("Body", "Question"), where)
        rows.append(
            {
                "prompt": f"{row['Body'].strip()} {row['Question'].strip()}",
                "answer": _number(row.get("Answer"), where),
                "equation": str(row.get("Equation", "")),
                "type": str(row.get("Type", "")),
            }
        )
    return rows


def _number(answer: Any, where: str) -> str:
    """51.0 as "51"."""
    try:
        number = float(answer)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"{where}: column Answer must be a number, found {str(answer)[:40]!r}; correct the "
            "row or take it out"
        )
    return str(int(number)) if number.is_integer() else str(number)
