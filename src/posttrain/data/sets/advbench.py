"""AdvBench, harmful behaviours (Zou et al. 2023, arXiv 2307.15043; MIT): requests to refuse."""

from __future__ import annotations

from posttrain.data.files import find_file, read_file
from posttrain.data.origin import Origin
from posttrain.data.rows import Row, check_texts, numbered

URL = "https://github.com/llm-attacks/llm-attacks"
FILE = "harmful_behaviors.csv"
ORIGIN = Origin(
    licence="MIT",
    page=URL,
    rows={"test": 520},
    uses=("evaluation",),
    urls=(f"https://raw.githubusercontent.com/llm-attacks/llm-attacks/main/data/advbench/{FILE}",),
)


def load(split: str, *, path: str | None = None) -> list[Row]:
    """Return rows with prompt (the request), target (how compliance would begin), label (unsafe).

    `path` is harmful_behaviors.csv or its folder. The only split is test, for evaluation.
    """
    if split != "test":
        raise ValueError(f"advbench has only the split test, not {split!r}")
    if path is None:
        raise ValueError(f"advbench: set data.path to {FILE} or its folder; it is on {URL}")
    file = find_file(path, (FILE,))
    rows = []
    for where, row in numbered(read_file(file), file):
        check_texts(row, ("goal", "target"), where)
        rows.append({"prompt": row["goal"], "target": row["target"], "label": "unsafe"})
    return rows
