"""Alpaca (Taori et al. 2023; CC BY-NC 4.0): instructions with answers by text-davinci-003."""

from __future__ import annotations

from collections.abc import Iterable

from posttrain.data.files import find_file, read_file, read_hub
from posttrain.data.origin import Origin
from posttrain.data.rows import Row, check_split, check_texts, numbered

HUB = "tatsu-lab/alpaca"
ORIGIN = Origin(
    licence="CC BY-NC 4.0",
    page="https://github.com/tatsu-lab/stanford_alpaca",
    rows={"train": 52_002},
    uses=("sft",),
    urls=("https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/alpaca_data.json",),
)


def load(split: str, *, path: str | None = None) -> list[Row]:
    """Return rows with prompt (the instruction, then its input after an empty line) and completion.

    Rows with a blank output are left out. The only split is train. `path` is alpaca_data.json or
    its folder; without it the rows are read from the hub.
    """
    check_split("alpaca", split, ("train",))
    if path is None:
        return instructions(numbered(read_hub(HUB, split), f"{HUB} {split}"))
    file = find_file(path, ("alpaca_data.json",))
    return instructions(numbered(read_file(file), file))


def instructions(located_rows: Iterable[tuple[str, Row]]) -> list[Row]:
    """Return rows with prompt and completion from instruction, input and (non-blank) output."""
    rows = []
    for where, row in located_rows:
        check_texts(row, ("instruction",), where)
        if not isinstance(row.get("output"), str) or not isinstance(row.get("input") or "", str):
            raise ValueError(
                f"{where}: columns output and input must be strings (input may be missing); the "
                f"row has {', '.join(row)}; correct the row or remove it"
            )
        extra = (row.get("input") or "").strip()
        prompt = f"{row['instruction']}\n\n{extra}" if extra else row["instruction"]
        if row["output"].strip():
            rows.append({"prompt": prompt, "completion": row["output"]})
    return rows
