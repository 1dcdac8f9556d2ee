"""The files of a split in a folder, whatever the folder's layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from posttrain.data.formats import suffix_of
from posttrain.data.splits import split_named

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt", ".arrow")
ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "made.json")
"""JSON files beside data that describe it."""
SPLITS = ("train", "validation", "test")
PART = re.compile(r"-(\d+)-of-(\d+)(?=\.)")


def files_of_split(folder: Path, split: str) -> list[Path]:
    """Return a folder's files of a split.

    In this order: what the data card's `configs` say (README.md of a hub data set), files named
    after the split, such as train.jsonl or train-00000-of-00002.parquet, a folder of that name, the
    folder `data`, files with the split as a word in their names, such as math_train_01.jsonl, and,
    for the split train, the only data in the folder: one file, or files whose names differ in a
    number. Raises ValueError, with what the folder holds, if there are none, or if a part of them
    is not there.
    """
    chosen = _by_card(folder, split)
    files = data_files(folder)
    if not chosen:
        chosen = [f for f in files if f.name.split(".")[0].split("-")[0] == split]
    if not chosen and (folder / split).is_dir():
        chosen = data_files(folder / split)
    if not chosen and not files and (folder / "data").is_dir():
        return files_of_split(folder / "data", split)
    if not chosen:
        words = {word for file in files for word in _words(file)}
        if (word := split_named(split, sorted(words))) is not None:
            chosen = [file for file in files if word in _words(file)]
        elif split == "train" and not any(split_named(s, sorted(words)) for s in SPLITS):
            alike = {re.sub(r"\d+", "N", file.name) for file in files}
            chosen = files if len(alike) == 1 else []
    if not chosen:
        raise ValueError(f"{folder} has no file for split {split!r}; found {contents(folder)}")
    refuse_lost_parts(chosen)
    return chosen


def data_files(folder: Path) -> list[Path]:
    """Return a folder's own data files, in the order of their names and the numbers in them."""
    files = [f for f in folder.iterdir() if suffix_of(f) in SUFFIXES and f.name not in ABOUT]
    return sorted((f for f in files if not f.name.startswith(".") and f.is_file()), key=in_order)


def in_order(file: Path) -> list[tuple[int, str]]:
    """Return a key that sorts part-2 before part-10."""
    parts = re.split(r"(\d+)", str(file))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _words(file: Path) -> list[str]:
    return re.split(r"[^a-z0-9]+", file.name.removesuffix(".gz").rpartition(".")[0].lower())


def contents(folder: Path) -> str:
    """Return what a folder holds, to name it in messages."""
    files = [f.name for f in data_files(folder)]
    others = [f"{p.name}/" if p.is_dir() else p.name for p in sorted(folder.iterdir())]
    others = [name for name in others if name not in files and not name.startswith(".")]
    found = ", ".join([*files, *others][:8])
    return found if files else f"no data file ({found or 'nothing'})"


def refuse_lost_parts(files: list[Path]) -> None:
    """Raise ValueError if files named -00000-of-00003 are not all there."""
    parts = [(file, found) for file in files if (found := PART.search(file.name))]
    for file, found in parts:
        start = file.name[: found.start()]
        have = {int(x[1]) for f, x in parts if f.name.startswith(start) and x[2] == found[2]}
        if lost := sorted(set(range(int(found[2]))) - have):
            name = f"{start}-{lost[0]:0{len(found[1])}}-of-{found[2]}"
            raise ValueError(
                f"{file.parent} lacks {name}{file.suffix}, a part of the data: copy it"
            )


def _by_card(folder: Path, split: str) -> list[Path]:
    """Return the files of a split by the `configs` of a data card; none if it has no such list."""
    configs = _configs(folder / "README.md")
    names = [str(config.get("config_name")) for config in configs]
    default = [c for c in configs if c.get("default") or c.get("config_name") == "default"]
    if len(configs) > 1 and not default:
        raise ValueError(
            f"{folder} holds the data sets {', '.join(names[:8])} by its README.md: set data.path "
            "to the files of one of them"
        )
    entries = (default or configs)[0].get("data_files") if configs else None
    if isinstance(entries, str) or (
        isinstance(entries, list) and entries and isinstance(entries[0], str)
    ):
        entries = [{"split": "train", "path": entries}]
    by_split = {
        str(entry["split"]): entry["path"]
        for entry in entries or []
        if isinstance(entry, dict) and {"split", "path"} <= entry.keys()
    }
    key = split_named(split, list(by_split))
    patterns = [] if key is None else by_split[key]
    files: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = sorted((f for f in folder.glob(str(pattern)) if f.is_file()), key=in_order)
        if not found:
            raise ValueError(
                f"{folder} has no {pattern}, which its README.md names for the split {key}; found "
                f"{contents(folder)}"
            )
        files += found
    return files


def _configs(card: Path) -> list[dict[str, Any]]:
    """Return the `configs` in a data card's head."""
    if not card.is_file():
        return []
    head = re.match(r"\s*---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.S)
    try:
        about = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        return []
    configs = about.get("configs") if isinstance(about, dict) else None
    return [c for c in configs if isinstance(c, dict)] if isinstance(configs, list) else []
