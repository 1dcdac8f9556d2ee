"""Stack Exchange, paired (Lambert et al. 2023; CC BY-SA 4.0): questions with two answers.

The chosen answer has more votes. These are the pairs of StackLLaMA, made from H4's Stack Exchange
Preferences.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from posttrain.common.errors import SettingError
from posttrain.data.files import read_file, read_hub, read_path
from posttrain.data.origin import HubFiles, Origin
from posttrain.data.rows import Row, check_texts, numbered

HUB = "lvwerra/stack-exchange-paired"
SPLITS = ("train", "test")
ORIGIN = Origin(
    licence="CC BY-SA 4.0",
    page=f"https://huggingface.co/datasets/{HUB}",
    rows=dict.fromkeys(SPLITS),
    uses=("preference",),
    hub=tuple(HubFiles(HUB, f"data/{part}/*.parquet", "data/") for part in ("rl", "evaluation")),
)


def load(
    split: str, *, path: str | None = None, part: Literal["finetune", "reward", "rl"] = "rl"
) -> list[Row]:
    """Return rows with prompt (the question), chosen and rejected (answers).

    `path` is a folder with train.* and test.*, or a file; without it the rows are read from the
    hub. There the training rows are in three parts, of which `part` names one, and the test split
    is a fourth, "evaluation". A folder with subfolders of these names is read like the hub;
    `posttrain data download` fetches rl and evaluation.
    """
    if split not in SPLITS:
        raise ValueError(
            f"stack_exchange_paired: unknown split {split!r}: choose one of {', '.join(SPLITS)}"
        )
    subfolder = part if split == "train" else "evaluation"
    if path is None:
        raw = read_hub(HUB, "train", data_dir=f"data/{subfolder}")
    elif (Path(path) / subfolder).is_dir():
        files = sorted((Path(path) / subfolder).glob("*.parquet"))
        raw = [row for file in files for row in read_file(file)]
    elif Path(path).exists():
        raw = read_path(path, split)
    else:
        raise SettingError("data.path", f"{path} does not exist")
    rows = []
    for where, row in numbered(raw, path or HUB):
        names = ("question", "response_j", "response_k")
        check_texts(row, names, where, blank=True)
        rows.append(dict(zip(("prompt", "chosen", "rejected"), (row[name] for name in names))))
    return rows
