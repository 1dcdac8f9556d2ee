"""The files of a split in a folder, whatever the folder's layout."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from posttrain.data.contents import PACKED, suffix_of
from posttrain.data.splits import split_named

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt", ".arrow")
ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "made.json")
"""JSON files beside data that describe it."""
SPLITS = ("train", "validation", "test")
PART = re.compile(r"[-_](\d+)[-_]of[-_](\d+)(?=[-._])")
SHARD = re.compile(r"-\d+(-of-\d+)?(-[0-9a-f]+)?$")
"""What follows the split in the name of one of its parts, such as train-00000-of-00002-0a1b2c."""


def files_of_split(folder: Path, split: str) -> list[Path]:
    """Return a folder's files of a split.

    In a folder of `save_to_disk`, those that its state.json names. Else, in this order: the
    snapshot of a hub cache's folder, what the data card's `configs` say (README.md of a hub data
    set), files named after the split, such as train.jsonl or train-00000-of-00002.parquet, a folder
    of that name, the folder `data`, files with the split as a word in their names, such as
    math_train_01.jsonl, and, for the split train, the only data in the folder: one file, or files
    whose names differ in a number. Raises ValueError, with what the folder holds, if there are
    none, if a part of them is not there, or if they are the same data in two forms.
    """
    if (folder / "refs" / "main").is_file():
        snapshot = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
        return files_of_split(snapshot, split) if snapshot.is_dir() else refuse(folder, split)
    if (saved := _saved_to_disk(folder)) and split in (saved[1], "train"):
        return saved[0]
    if chosen := _by_card(folder, split):
        refuse_lost_parts(chosen)
        return chosen
    files = data_files(folder)
    stems = {f: f.name.split(".")[0] for f in files}
    chosen = [f for f in files if stems[f] == split]
    chosen += [f for f in files if SHARD.fullmatch(stems[f].removeprefix(split))]
    if not chosen and (folder / split).is_dir():
        inner = _saved_to_disk(folder / split)
        chosen = inner[0] if inner else data_files(folder / split)
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
        refuse(folder, split)
    refuse_lost_parts(chosen)
    refuse_two_forms(chosen)
    return chosen


def refuse(folder: Path, split: str) -> NoReturn:
    """Raise ValueError for a folder without files of a split, with what it holds."""
    raise ValueError(f"{folder} has no file for split {split!r}; found {contents(folder)}")


def _saved_to_disk(folder: Path) -> tuple[list[Path], str | None] | None:
    """Return the files and the split of a folder that `save_to_disk` wrote; None for others.

    Other .arrow files beside them are caches of the library datasets.
    """
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # there is none, or it is another program's
        return None
    state = state if isinstance(state, dict) else {}
    names = [str(x.get("filename")) for x in state.get("_data_files") or [] if isinstance(x, dict)]
    if not names:
        return None
    if state.get("_indices_files"):
        raise ValueError(
            f"{folder} holds a selection or another order of its rows, which is not read: save it "
            "again after .flatten_indices()"
        )
    if lost := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(f"{folder} lacks {lost[0]}, a part of the data: copy it")
    return [folder / name for name in names], state.get("_split")


def refuse_two_forms(files: list[Path]) -> None:
    """Raise ValueError if files of one split and one folder seem to be the same data twice."""
    for other in files[1:]:
        first = files[0]
        stems = [file.name.split(".")[0] for file in (first, other)]
        totals = [found[2] if (found := PART.search(file.name)) else "" for file in (first, other)]
        forms = suffix_of(first) != suffix_of(other) or totals[0] != totals[1]
        if first.parent == other.parent and (forms or stems[0] == stems[1]):
            raise ValueError(
                f"{first.parent} holds {first.name} and {other.name}, perhaps the same data twice: "
                "set data.path to the file or files that are meant"
            )


def data_files(folder: Path) -> list[Path]:
    """Return a folder's own data files, in the order of their names and the numbers in them."""
    files = [f for f in folder.iterdir() if suffix_of(f) in SUFFIXES and f.name not in ABOUT]
    return sorted((f for f in files if not f.name.startswith(".") and f.is_file()), key=in_order)


def in_order(file: Path) -> list[tuple[int, str]]:
    """Return a key that sorts part-2 before part-10."""
    parts = re.split(r"(\d+)", str(file))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _words(file: Path) -> list[str]:
    name = file.stem if file.suffix.lower() in PACKED else file.name
    return re.split(r"[^a-z0-9]+", name.rpartition(".")[0].lower())


def contents(folder: Path) -> str:
    """Return what a folder holds, to name it in messages."""
    files = [f.name for f in data_files(folder)]
    others = [f"{p.name}/" if p.is_dir() else p.name for p in sorted(folder.iterdir())]
    others = [name for name in others if name not in files and not name.startswith(".")]
    found = ", ".join([*files, *others][:8])
    if files:
        return found
    inner = (f for f in folder.rglob("*") if suffix_of(f) in SUFFIXES and f.name not in ABOUT)
    visible = (f for f in inner if f.is_file() and not f.name.startswith("."))
    first = next(visible, None)
    where = "" if first is None else f"; there is {first}: set data.path to its folder"
    return f"no data file ({found or 'nothing'}){where}"


def refuse_lost_parts(files: list[Path]) -> None:
    """Raise ValueError if files named -00000-of-00003 are not all there."""
    parts = [(file, found) for file in files if (found := PART.search(file.name))]
    for file, found in parts:
        start = file.name[: found.start()]
        have = {int(x[1]) for f, x in parts if f.name.startswith(start) and x[2] == found[2]}
        from_one = 0 not in have and int(found[2]) in have
        if lost := sorted({number + from_one for number in range(int(found[2]))} - have):
            name = file.name[: found.start(1)] + f"{lost[0]:0{len(found[1])}}"
            name += file.name[found.end(1) : found.end(2)]
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
    config = (default or configs)[0] if configs else {}
    entries, inner = config.get("data_files"), folder / str(config.get("data_dir") or ".")
    if entries is None and inner != folder and inner.is_dir():
        return files_of_split(inner, split)
    if isinstance(entries, dict):
        entries = [{"split": name, "path": path} for name, path in entries.items()]
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
    head = re.match(
        r"\s*---\n(.*?)\n---", card.read_text(encoding="utf-8-sig", errors="replace"), re.S
    )
    try:
        about = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        return []
    configs = about.get("configs") if isinstance(about, dict) else None
    return [c for c in configs if isinstance(c, dict)] if isinstance(configs, list) else []
