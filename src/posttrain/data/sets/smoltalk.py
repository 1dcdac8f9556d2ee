"""SmolTalk (Allal et al. 2025, arXiv 2502.02737): a million conversations, mostly synthetic."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from posttrain.common.errors import SettingError
from posttrain.data.entries import text_of
from posttrain.data.files import read_file, read_hub
from posttrain.data.folders import files_of_split
from posttrain.data.messages import messages_of
from posttrain.data.origin import HubFiles, Origin
from posttrain.data.rows import Row, check_split, numbered

HUB = "HuggingFaceTB/smoltalk"
ORIGIN = Origin(
    licence="Apache 2.0 (its own parts); others: see the source",
    page=f"https://huggingface.co/datasets/{HUB}",
    rows={"train": None, "test": None},
    uses=("sft",),
    hub=(HubFiles(HUB, "data/all/*.parquet", "data/all/"),),
)


def load(split: str, *, path: str | None = None, part: str = "all") -> list[Row]:
    """Return rows with messages (role and content) and, if the file names it, source.

    `path` is a folder with train.* and test.*, or a file; without it the rows are read from the
    hub, of which `part` is one of the configurations that its page lists.
    """
    check_split("smoltalk", split, ("train", "test"))
    if path is None:
        return _rows(numbered(read_hub(HUB, split, part), f"{HUB} {split}"))
    location = Path(path)
    if not location.exists():
        raise SettingError("data.path", f"{path} does not exist")
    files = [location] if location.is_file() else files_of_split(location, split)
    return [row for file in files for row in _rows(numbered(read_file(file), file))]


def _rows(located_rows: Iterable[tuple[str, Row]]) -> list[Row]:
    rows = []
    for where, row in located_rows:
        try:
            messages = messages_of(row, "messages")
        except ValueError as error:
            raise ValueError(f"{where}: column {error}; correct the row or remove it") from None
        if not any(message["role"] == "assistant" for message in messages):
            raise ValueError(
                f"{where}: column messages has no assistant message; correct the row or remove it"
            )
        kept = [{"role": m["role"], "content": text_of(m)} for m in messages]
        rows.append({"messages": kept} | ({"source": row["source"]} if "source" in row else {}))
    return rows
