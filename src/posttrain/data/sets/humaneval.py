"""HumanEval (Chen et al. 2021, arXiv 2107.03374; MIT): 164 Python functions to complete."""

from __future__ import annotations

from posttrain.data.files import find_file, read_file, read_hub
from posttrain.data.origin import Origin
from posttrain.data.rows import Row, check_texts, numbered

HUB = "openai/openai_humaneval"
COLUMNS = ("prompt", "canonical_solution", "test", "entry_point")
ORIGIN = Origin(
    licence="MIT",
    page="https://github.com/openai/human-eval",
    rows={"test": 164},
    uses=("evaluation",),
    urls=("https://github.com/openai/human-eval/raw/master/data/HumanEval.jsonl.gz",),
)


def load(split: str, *, path: str | None = None) -> list[Row]:
    """Return rows with prompt (signature and docstring), completion (body), test, entry_point.

    The only split is test, for evaluation. `path` is HumanEval.jsonl, gzipped or not, or its
    folder; without it the rows are read from the hub.
    """
    if split != "test":
        raise ValueError(f"humaneval has only the split test, not {split!r}")
    if path is None:
        located_rows = numbered(read_hub(HUB, split), f"{HUB} {split}")
    else:
        file = find_file(path, ("HumanEval.jsonl.gz", "HumanEval.jsonl"))
        located_rows = numbered(read_file(file), file)
    rows = []
    for where, row in located_rows:
        check_texts(row, COLUMNS, where)
        rows.append(
            {
                "prompt": row["prompt"],
                "completion": row["canonical_solution"],
                "test": row["test"],
                "entry_point": row["entry_point"],
            }
        )
    return rows
