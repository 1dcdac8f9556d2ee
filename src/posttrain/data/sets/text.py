"""Your own plain text, for language modelling: a .txt file, or a folder of them."""

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
    """Rows with one column, text: a file each. Train on them with length.on_overlong: split.

    `path` is a .txt file (also .gz) or a folder with such, also in folders below. Files named after
    train and test (train.txt, test-1.txt) are their split. Without such names one file is cut:
    the last tenth of it, from the beginning of a line on, is the test. Of several files, a tenth,
    chosen by a hash of their text, is the test.
    """
    check_split("text", split, SPLITS)
    if path is None:
        raise ValueError("text: set data.path to a .txt file or a folder with such files")
    place = Path(path)
    if not place.exists():
        raise SettingError("data.path", f"{path} does not exist")
    if place.is_file():
        return _cut(_text(place), split)
    files = sorted(f for f in place.rglob("*") if f.name.endswith(SUFFIXES))
    if not files:
        raise SettingError("data.path", f"{path} holds no .txt file")
    if any(_named(file) in SPLITS for file in files):
        texts = [_text(file) for file in files if _named(file) == split]
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
        raise ValueError(f"{file}: expected a .txt file; give rows with a column text as data.path")
    (row,) = read_file(file)
    if not row["text"].strip():
        raise ValueError(f"{file}: no text in it; take the file out")
    return str(row["text"])


def _named(file: Path) -> str:
    return file.name.split(".")[0].split("-")[0]


def _cut(text: str, split: str) -> list[Row]:
    at = text.rfind("\n", 0, len(text) * 9 // 10) + 1
    part = text[:at] if split == "train" else text[at:]
    if not part.strip():
        raise ValueError(f"text: too few lines for the split {split}: give a longer file")
    return [{"text": part}]


def _side(text: str) -> str:
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % 10 == 0 else "train"
