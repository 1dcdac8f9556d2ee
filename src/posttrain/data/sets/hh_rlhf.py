"""Anthropic's HH-RLHF (Bai et al. 2022, arXiv 2204.05862; MIT): dialogues with two replies."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from posttrain.common.errors import SettingError
from posttrain.data.files import read_file, read_hub
from posttrain.data.kinds.preference_forms import dialogue
from posttrain.data.origin import HubFiles, Origin
from posttrain.data.rows import Row, check_texts, numbered

SPLITS = ("train", "test")
ORIGIN = Origin(
    licence="MIT",
    page="https://github.com/anthropics/hh-rlhf",
    rows={"train": 160_800, "test": 8_552},
    uses=("preference",),
    hub=(HubFiles("Anthropic/hh-rlhf", "h*/t*.jsonl.gz"),),
)


def load(
    split: str, *, path: str | None = None, form: Literal["messages", "text"] = "messages"
) -> list[Row]:
    """Return rows with prompt, chosen and rejected.

    Rows without a common prompt are left out, as are those whose dialogue does not begin with the
    human. `form: text` keeps the dialogue as in the file, for models without a chat template.

    `path` is a folder with .jsonl files (also .gz, and in subfolders) named after train and test,
    or one file, which is split: a tenth of the prompts, chosen by a hash, is the test split.
    Without it the rows are read from the hub.
    """
    if split not in SPLITS:
        raise ValueError(f"hh_rlhf: unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    source, raw, must_split = _read(split, path)
    rows = []
    for where, row in numbered(raw, source):
        check_texts(row, ("chosen", "rejected"), where, blank=True)
        pair = _pair(row["chosen"], row["rejected"])
        if pair is None or (must_split and _side(str(pair["prompt"])) != split):
            continue
        rows.append(pair if form == "messages" else _as_text(pair, row["chosen"]))
    return rows


def _read(split: str, path: str | None) -> tuple[object, list[Row], bool]:
    """Return the rows' source, the rows, and whether these have yet to be split."""
    if path is None:
        return "Anthropic/hh-rlhf", read_hub("Anthropic/hh-rlhf", split), False
    location = Path(path)
    if not location.exists():
        raise SettingError("data.path", f"{path} does not exist")
    files = [location]
    if not location.is_file():
        suffixes = (".jsonl", ".jsonl.gz")
        files = sorted(file for file in location.rglob("*") if file.name.endswith(suffixes))
    of_split = [file for file in files if split in file.name]
    if not files:
        raise SettingError("data.path", f"{path} has no .jsonl file")
    if len(files) == 1:
        return files[0], list(read_file(files[0])), True
    if not of_split:
        found = ", ".join(file.name for file in files)
        raise SettingError("data.path", f"{path} has no file named after {split}; found {found}")
    return path, [row for file in of_split for row in read_file(file)], False


def _pair(chosen: str, rejected: str) -> Row | None:
    """Return prompt, chosen and rejected of two dialogues; None if they are no such pair."""
    left, right = dialogue(chosen), dialogue(rejected)
    if len(left) != len(right) or len(left) < 2 or left[:-1] != right[:-1]:
        return None
    if left[0]["role"] != "user" or left[-1]["role"] != "assistant" != right[-1]["role"]:
        return None
    return {"prompt": left[:-1], "chosen": left[-1:], "rejected": right[-1:]}


def _as_text(pair: Row, chosen: str) -> Row:
    end = "\n\nAssistant:"
    contents = {name: pair[name][0]["content"] for name in ("chosen", "rejected")}
    replies = {name: f" {text}" if text else "" for name, text in contents.items()}
    return {"prompt": chosen[: chosen.rindex(end)] + end, **replies}


def _side(prompt: str) -> str:
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % 10 == 0 else "train"
