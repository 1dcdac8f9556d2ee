"""UltraFeedback, binarized (Cui et al. 2023, arXiv 2310.01377; MIT): instructions, two answers."""

from __future__ import annotations

from pathlib import Path

from posttrain.data.load import Row, numbered, read_hub, read_path
from posttrain.data.preferences import as_pair

HUB = "HuggingFaceH4/ultrafeedback_binarized"


def load(split: str, *, path: str | None = None) -> list[Row]:
    """Rows prompt, chosen, rejected (messages), score_chosen, score_rejected; pairs of equal scores
    are left out.

    `path` is a folder with train.* and test.*, or a file; without it the hub is asked.
    """
    if path is not None and not Path(path).exists():
        raise ValueError(f"data.path: {path} does not exist")
    raw = read_hub(HUB, f"{split}_prefs") if path is None else read_path(path, split)
    rows = []
    for where, row in numbered(raw, path or HUB):
        try:
            pair = as_pair(row)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if pair.get("score_chosen") is None or pair["score_chosen"] != pair.get("score_rejected"):
            rows.append(pair)
    return rows
