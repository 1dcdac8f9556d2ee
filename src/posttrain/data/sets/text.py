"""Your own plain text, for language modelling: a .txt file, or a folder of such files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from posttrain.common.errors import SettingError
from posttrain.data.files import read_file
from posttrain.data.origin import Origin
from posttrain.data.rows import Row, check_split

SPLITS = ("train", "test")
SUFFIXES = (".txt", ".txt.gz")
ORIGIN = Origin("your own", "data.path", dict.fromkeys(SPLITS), ())


def load(split: str, *, path: str | None = None) -> list[Row]:
    """Return a row for each file, with the column text. Use length.on_overlong: split with it.

    `path` is a .txt file (also .gz) or a folder with such files, also in subfolders. Files named
    after train and test (train.txt, test-1.txt) belong to that split. Without such names, a single
    file is cut: its last tenth, from the beginning of a line on, is the test split; of several
    files, a tenth, chosen by a hash of their text, is the test split.
    """
    check_split("text", split, SPLITS)
    if path is None:
        raise ValueError("text: set data.path to a .txt file or a folder with such files")
    location = Path(path)
    if not location.exists():
        raise SettingError("data.path", f"{path} does not exist")
    if location.is_file():
        return _cut(_text(location), split)
    files = sorted(f for f in location.rglob("*") if f.name.endswith(SUFFIXES))
    if not files:
        raise SettingError("data.path", f"{path} has no .txt file")
    if any(_name_part(file) in SPLITS for file in files):
        texts = [_text(file) for file in files if _name_part(file) == split]
    elif len(files) == 1:
        return _cut(_text(files[0]), split)
    else:
        texts = [text for text in map(_text, files) if _side(text) == split]
    if not texts:
        raise SettingError(
            "data.path",
            f"none of the {len(files)} files in {path} is in the split {split}: name "
            "them after train and test, as in test.txt",
        )
    return [{"text": text} for text in texts]


def _text(file: Path) -> str:
    if not file.name.endswith(SUFFIXES):
        raise ValueError(
            f"{file}: expected a .txt file; for rows with a column text, use data.path alone"
        )
    (row,) = read_file(file)
    if not row["text"].strip():
        raise ValueError(f"{file}: the file is blank; remove it")
    return str(row["text"])


def _name_part(file: Path) -> str:
    """Return the first part of a file's name: "test" of test-1.txt."""
    return file.name.split(".")[0].split("-")[0]


def _cut(text: str, split: str) -> list[Row]:
    cut = text.rfind("\n", 0, len(text) * 9 // 10) + 1
    part = text[:cut] if split == "train" else text[cut:]
    if not part.strip():
        raise ValueError(f"text: too few lines for the split {split}: give a longer file")
    return [{"text": part}]


def _side(text: str) -> str:
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % 10 == 0 else "train"
