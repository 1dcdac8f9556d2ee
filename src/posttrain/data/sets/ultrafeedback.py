"""UltraFeedback, binarized (Cui et al. 2023, arXiv 2310.01377; MIT): prompts with two answers."""

from __future__ import annotations

from pathlib import Path

from posttrain.common.errors import SettingError
from posttrain.data.files import read_hub, read_path
from posttrain.data.kinds.preference_forms import as_pair
from posttrain.data.origin import HubFiles, Origin
from posttrain.data.rows import Row, numbered

HUB = "HuggingFaceH4/ultrafeedback_binarized"
ORIGIN = Origin(
    licence="MIT",
    page=f"https://huggingface.co/datasets/{HUB}",
    rows={"train": 61_135, "test": 2_000},
    uses=("preference",),
    hub=(HubFiles(HUB, "data/*_prefs-*.parquet", "data/"),),
)


def load(split: str, *, path: str | None = None) -> list[Row]:
    """Return rows with prompt, chosen, rejected (messages), score_chosen and score_rejected.

    Pairs with equal scores are left out. `path` is a folder with train.* and test.* (or, as on the
    hub, train_prefs-* and test_prefs-*), or a file; without it the rows are read from the hub.
    """
    if path is not None and not Path(path).exists():
        raise SettingError("data.path", f"{path} does not exist")
    prefs = f"{split}_prefs"
    if path is None:
        raw = read_hub(HUB, prefs)
    else:
        raw = read_path(path, prefs if any(Path(path).glob(f"{prefs}*")) else split)
    rows = []
    for where, row in numbered(raw, path or HUB):
        try:
            pair = as_pair(row)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if pair.get("score_chosen") is None or pair["score_chosen"] != pair.get("score_rejected"):
            rows.append(pair)
    return rows
