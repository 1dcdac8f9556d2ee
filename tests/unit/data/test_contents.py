"""Data as other programs leave it: compressed, misnamed, in other encodings, beside caches."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from posttrain.data.contents import likely_encoding
from posttrain.data.files import read_path
from posttrain.data.noted import lines as note_lines

ROWS = [{"prompt": f"p{i}", "completion": f"größe {i}"} for i in range(4)]
TEXT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def zstandard(raw: bytes) -> bytes:
    return bytes(pyarrow.compress(raw, "zstd", asbytes=True))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard,
}


def put(file: Path, content: str | bytes = TEXT) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def parquet(file: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


def arrow(file: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(rows), str(file))
    return file


def rows_of(path: Any, split: str = "train") -> list[dict[str, Any]]:
    return read_path(str(path), split)


def refusal(path: Any, split: str = "train") -> str:
    with pytest.raises(ValueError, match=r".+") as caught:
        read_path(path if isinstance(path, list) else str(path), split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow"])
def test_compressed_files(tmp_path: Path, name: str, suffix: str) -> None:
    file = tmp_path / name
    match file.suffix:
        case ".parquet":
            parquet(file)
        case ".arrow":
            arrow(file)
        case ".csv":
            put(file, "prompt,completion\n" + "".join(f"{p},{c}\n" for p, c in map(_pair, ROWS)))
        case _:
            put(file)
    packed = put(tmp_path / f"{name}{suffix}", PACKERS[suffix](file.read_bytes()))
    assert rows_of(packed) == ROWS
    packed.write_bytes(packed.read_bytes()[:-12])
    assert "not a complete" in refusal(packed)


def _pair(row: dict[str, Any]) -> tuple[str, str]:
    return row["prompt"], row["completion"]


@pytest.mark.parametrize("name", ["a.JSONL", "a.ndjson", "a.jsonlines", "a.jl", "a.ndjson.gz"])
def test_other_names_of_json_lines(tmp_path: Path, name: str) -> None:
    content = gzip.compress(TEXT.encode()) if name.endswith("gz") else TEXT.encode()
    assert rows_of(put(tmp_path / name, content)) == ROWS


def test_feather_is_arrow_and_pq_is_parquet(tmp_path: Path) -> None:
    assert rows_of(arrow(tmp_path / "a.feather")) == ROWS
    assert rows_of(parquet(tmp_path / "a.pq")) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "a.jsonl",
            gzip.compress(TEXT.encode(), mtime=0),
            "is a gzip file, not .jsonl: name it a.jsonl.gz",
        ),
        ("a.json", zstandard(TEXT.encode()), "is a Zstandard file, not .json: name it a.json.zst"),
        ("a.jsonl", b"PAR1" + bytes(20), "is a Parquet file, not .jsonl: name it a.parquet"),
        ("a.csv", b"PK\x03\x04" + bytes(20), "is a zip archive or a spreadsheet, not .csv"),
        ("a.parquet", b"<!DOCTYPE html><html>404", "is a web page, not data: download the file"),
        ("a.csv", b"\n<HTML><body>404", "is a web page"),
        ("a.json", b" \n", "a.json is empty"),
        ("a.xlsx", b"PK\x03\x04", "unknown file type; expected one of .jsonl"),
        ("a.zip", b"PK\x03\x04", ": unpack it"),
        ("a.pkl", b"\x80\x04\x95", "a pickle can run code and is never loaded"),
        ("a.jsonl", b'{"prompt": 1, "prompt": 2}\n', "the key 'prompt' occurs twice in one object"),
        ("a.json", b'[{"a": {"b": 1, "b": 2}}]', "the key 'b' occurs twice in one object"),
    ],
)
def test_what_a_file_is_instead(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    assert expected in refusal(put(tmp_path / name, content))


@pytest.mark.parametrize("encoding", ["utf-32", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt"])
def test_marked_encodings(tmp_path: Path, name: str, encoding: str) -> None:
    rows = rows_of(put(tmp_path / name, TEXT.encode(encoding)))
    assert rows == ([{"text": TEXT}] if name == "a.txt" else ROWS)


@pytest.mark.parametrize(
    ("text", "encoding", "name"),
    [
        ("Über die Größe naïver Cafés, déjà vu", "latin-1", "WINDOWS-1252"),
        ("“Das ist schön”", "cp1252", "WINDOWS-1252"),
        ("你好世界，这是一个例子。", "gbk", "GBK"),
        ("你好世界，這是一個例子。", "big5", "BIG5"),
        ("こんにちは世界。元気ですか", "cp932", "SHIFT_JIS"),
        ("こんにちは世界。元気ですか", "euc_jp", "EUC-JP"),
        ("안녕하세요 세계", "cp949", "EUC-KR"),
        ("привет, мир", "cp1251", "WINDOWS-1251"),
        ("привет, мир", "koi8-r", "KOI8-R"),
        ("hello", "utf-16-le", "UTF-16LE"),
        ("hello", "utf-16-be", "UTF-16BE"),
    ],
)
def test_likely_encodings(tmp_path: Path, text: str, encoding: str, name: str) -> None:
    """The advice names an encoding that gives the text back, since it would otherwise be lost."""
    raw = f'{{"prompt": "{text}"}}\n'.encode(encoding)
    assert likely_encoding(raw) == name
    assert raw.decode(name) == f'{{"prompt": "{text}"}}\n'
    assert f"iconv -f {name} -t UTF-8" in refusal(put(tmp_path / "a.jsonl", raw))


def test_the_same_data_in_two_forms_is_not_read_twice(tmp_path: Path) -> None:
    for number, (first, second) in enumerate(
        [
            ("train.jsonl", "train.parquet"),
            ("train.jsonl", "train.jsonl.gz"),
            ("train.jsonl", "train-00000-of-00001.jsonl"),
            ("train-00000-of-00001.jsonl", "train-00000-of-00002.jsonl"),
        ]
    ):
        folder = tmp_path / str(number)
        for name in (first, second):
            put(folder / name)
        if "of-00002" in second:
            put(folder / "train-00001-of-00002.jsonl")
        assert "perhaps the same data twice" in refusal(folder)
    file = put(tmp_path / "one" / "train.jsonl")
    put(file.with_name("train-old.jsonl"))  # not a part of train
    assert rows_of(file.parent) == ROWS


def test_a_file_named_twice(tmp_path: Path) -> None:
    file = put(tmp_path / "train_0.jsonl")
    text = refusal([str(file), str(tmp_path / "*_0.jsonl")])
    assert "are both" in text
    assert "name it once" in text


@pytest.mark.parametrize(
    ("there", "lost"),
    [
        ("train-00001-of-00002-0a1b2c3d4e5f6789", "train-00000-of-00002"),
        ("train_1_of_3", "train_2_of_3"),
    ],
)
def test_lost_parts_by_other_names(tmp_path: Path, there: str, lost: str) -> None:
    put(tmp_path / f"{there}.jsonl")
    if "_of_" in there:
        put(tmp_path / "train_3_of_3.jsonl")
    assert f"lacks {lost}.jsonl" in refusal(tmp_path)


def saved_to_disk(folder: Path, split: str | None = None, indices: bool = False) -> Path:
    arrow(folder / "data-00000-of-00001.arrow")
    arrow(folder / "cache-0123456789abcdef.arrow", ROWS[:2])  # what map() left there
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
    state |= {"_indices_files": [{"filename": "indices.arrow"}]} if indices else {}
    put(folder / "state.json", json.dumps(state))
    return folder


def test_a_folder_of_save_to_disk_without_its_caches(tmp_path: Path) -> None:
    assert rows_of(saved_to_disk(tmp_path / "one")) == ROWS
    saved_to_disk(tmp_path / "dict" / "train", "train")
    saved_to_disk(tmp_path / "dict" / "test", "test")
    assert rows_of(tmp_path / "dict") == rows_of(tmp_path / "dict", "test") == ROWS
    assert "save it again after .flatten_indices()" in refusal(
        saved_to_disk(tmp_path / "selected", indices=True)
    )
    (tmp_path / "one" / "data-00000-of-00001.arrow").unlink()
    assert "lacks data-00000-of-00001.arrow" in refusal(tmp_path / "one")


def test_a_folder_of_the_hub_cache(tmp_path: Path) -> None:
    parquet(tmp_path / "snapshots" / "abc" / "data" / "train-00000-of-00001.parquet")
    put(tmp_path / "refs" / "main", "abc")
    assert rows_of(tmp_path) == ROWS
    assert "set data.path to its folder" in refusal(tmp_path / "snapshots")


@pytest.mark.parametrize(
    "files",
    [
        "\ufeff---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n"
        "    path: other.jsonl\n---\n",
        "---\nconfigs:\n- config_name: default\n  data_files: {train: other.jsonl}\n---\n",
        "---\nconfigs:\n- config_name: default\n  data_dir: inner\n---\n",
    ],
)
def test_what_a_data_card_says_is_honoured(tmp_path: Path, files: str) -> None:
    put(tmp_path / "README.md", files)
    put(tmp_path / "other.jsonl")
    put(tmp_path / "inner" / "train.jsonl")
    put(tmp_path / "train.jsonl", TEXT.splitlines()[0])
    assert rows_of(tmp_path) == ROWS


def test_rows_that_become_several_sequences_are_said() -> None:
    assert note_lines("d", 2, {}, 5) == [
        "  note on d: 2 rows became 5 sequences, which are counted above"
    ]
    assert note_lines("d", 5, {}, 5) == []
