"""SVAMP (Patel et al. 2021, arXiv 2103.07191; MIT): 1,000 variations on simple word problems."""

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
    """Return rows with prompt, answer, equation and type (the operation).

    The only split is test: the set was made to test models that were trained on other problems.
    `path` is SVAMP.json or its folder; without it the rows are read from the hub, which has the
    1,000 problems in two parts.
    """
    check_split("svamp", split, ("test",))
    if path is None:
        located_rows = numbered(read_hub(HUB, "train+test"), f"{HUB} train+test")
    else:
        file = find_file(path, ("SVAMP.json",))
        located_rows = numbered(read_file(file), file)
    rows = []
    for where, row in located_rows:
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
    """Return the number as text: "51" for 51.0."""
    try:
        number = float(answer)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"{where}: column Answer must be a number, got {str(answer)[:40]!r}; correct the "
            "row or remove it"
        )
    return str(int(number)) if number.is_integer() else str(number)
