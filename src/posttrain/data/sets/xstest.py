"""XSTest (Röttger et al. 2024, arXiv 2308.01263; CC BY 4.0): tests of exaggerated refusal."""

from __future__ import annotations

from posttrain.data.files import find_file, read_file
from posttrain.data.origin import Origin
from posttrain.data.rows import Row, check_texts, numbered

URL = "https://github.com/paul-rottger/xstest"
FILES = ("xstest_prompts.csv", "xstest_v2_prompts.csv")
ORIGIN = Origin(
    licence="CC BY 4.0",
    page=URL,
    rows={"test": 450},
    uses=("evaluation",),
    urls=("https://raw.githubusercontent.com/paul-rottger/xstest/main/xstest_prompts.csv",),
)
LABELS = ("safe", "unsafe")


def load(split: str, *, path: str | None = None) -> list[Row]:
    """Return rows with prompt, label (safe or unsafe) and type (homonyms, contrast_homonyms, ...).

    `path` is xstest_prompts.csv or its folder. The only split is test, for evaluation. Files of the
    first release have no column label: types that begin with "contrast" are unsafe.
    """
    if split != "test":
        raise ValueError(f"xstest has only the split test, not {split!r}")
    if path is None:
        raise ValueError(f"xstest: set data.path to {FILES[0]} or its folder; it is on {URL}")
    file = find_file(path, FILES)
    rows = []
    for where, row in numbered(read_file(file), file):
        check_texts(row, ("prompt", "type"), where)
        label = row.get("label", LABELS[row["type"].startswith("contrast")])
        if label not in LABELS:
            raise ValueError(f"{where}: label must be {' or '.join(LABELS)}; got {label!r}")
        rows.append({"prompt": row["prompt"], "label": label, "type": row["type"]})
    return rows
