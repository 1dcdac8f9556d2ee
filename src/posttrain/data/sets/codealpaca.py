"""Code Alpaca (Chaudhary 2023; CC BY-NC 4.0): coding instructions with generated answers."""

from __future__ import annotations

from posttrain.data.files import find_file, read_file, read_hub
from posttrain.data.origin import Origin
from posttrain.data.rows import Row, check_split, numbered
from posttrain.data.sets.alpaca import instructions

HUB = "sahil2801/CodeAlpaca-20k"
ORIGIN = Origin(
    licence="CC BY-NC 4.0",
    page="https://github.com/sahil280114/codealpaca",
    rows={"train": 20_022},
    uses=("sft",),
    urls=(
        "https://raw.githubusercontent.com/sahil280114/codealpaca/master/data/code_alpaca_20k.json",
    ),
)


def load(split: str, *, path: str | None = None) -> list[Row]:
    """Return rows with prompt (the instruction, then its input after an empty line) and completion.

    Rows with a blank output are left out. The only split is train. `path` is code_alpaca_20k.json,
    or the smaller code_alpaca_2k.json, or the folder of either; without it the rows are read from
    the hub.
    """
    check_split("codealpaca", split, ("train",))
    if path is None:
        return instructions(numbered(read_hub(HUB, split), f"{HUB} {split}"))
    file = find_file(path, ("code_alpaca_20k.json", "code_alpaca_2k.json"))
    return instructions(numbered(read_file(file), file))
