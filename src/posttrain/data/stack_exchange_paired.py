"""Stack Exchange, paired (Lambert et al. 2023; CC BY-SA 4.0): questions with two answers.

The first has more votes. These are the pairs of StackLLaMA, made from H4's Stack Exchange
Preferences.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from posttrain.data.load import Row, numbered, read_hub, read_path

HUB = "lvwerra/stack-exchange-paired"
SPLITS = ("train", "test")


def load(
    split: str, *, path: str | None = None, part: Literal["finetune", "reward", "rl"] = "rl"
) -> list[Row]:
    """Rows prompt (the question), chosen and rejected (answers).

    `path` is a folder with train.* and test.*, or a file; without it the hub is asked, where the
    training rows lie in three parts and the test is the part "evaluation".
    """
    if split not in SPLITS:
        raise ValueError(
            f"stack_exchange_paired: unknown split {split!r}: choose one of {', '.join(SPLITS)}"
        )
    if path is None:
        raw = read_hub(HUB, "train", data_dir=f"data/{part if split == 'train' else 'evaluation'}")
    elif Path(path).exists():
        raw = read_path(path, split)
    else:
        raise ValueError(f"data.path: {path} does not exist")
    rows = []
    for where, row in numbered(raw, path or HUB):
        names = ("question", "response_j", "response_k")
        if not all(isinstance(row.get(name), str) for name in names):
            raise ValueError(
                f"{where}: expected texts {', '.join(names)}; found columns {', '.join(row)}"
            )
        rows.append(dict(zip(("prompt", "chosen", "rejected"), (row[name] for name in names))))
    return rows
