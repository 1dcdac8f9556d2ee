"""Magicoder's instructions (Wei et al. 2023, arXiv 2312.02120; MIT): coding tasks, solved."""

from __future__ import annotations

from typing import Literal

from posttrain.data.files import find_file, read_file, read_hub
from posttrain.data.origin import HubFiles, Origin
from posttrain.data.rows import Row, check_split, check_texts, numbered

HUB = {
    "oss": "ise-uiuc/Magicoder-OSS-Instruct-75K",
    "evol": "ise-uiuc/Magicoder-Evol-Instruct-110K",
}
FILES = {
    "oss": "data-oss_instruct-decontaminated.jsonl",
    "evol": "data-evol_instruct-decontaminated.jsonl",
}
COLUMNS = {"oss": ("problem", "solution"), "evol": ("instruction", "response")}
ORIGIN = Origin(
    licence="MIT (oss); evol: see the source",
    page="https://huggingface.co/datasets/ise-uiuc/Magicoder-OSS-Instruct-75K",
    rows={"train": None},
    uses=("sft",),
    hub=tuple(HubFiles(HUB[part], FILES[part]) for part in HUB),
)


def load(split: str, *, path: str | None = None, part: Literal["oss", "evol"] = "oss") -> list[Row]:
    """Return rows with prompt, completion and, in the part oss, lang (the programming language).

    `part`: oss, tasks inspired by open-source code (OSS-Instruct); evol, tasks made harder step by
    step (Evol-Instruct). The only split is train. `path` is the part's file,
    data-oss_instruct-decontaminated.jsonl or data-evol_instruct-decontaminated.jsonl, or its
    folder; without it the rows are read from the hub.
    """
    check_split("magicoder", split, ("train",))
    if path is None:
        located_rows = numbered(read_hub(HUB[part], split), f"{HUB[part]} {split}")
    else:
        file = find_file(path, (FILES[part],))
        located_rows = numbered(read_file(file), file)
    rows = []
    for where, row in located_rows:
        check_texts(row, COLUMNS[part], where)
        made = dict(zip(("prompt", "completion"), (row[column] for column in COLUMNS[part])))
        rows.append(made | ({"lang": row["lang"]} if "lang" in row else {}))
    return rows
