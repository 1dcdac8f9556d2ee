"""Files and folders as people have them: read, or refused with what they are and what to do."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from posttrain.config.errors import parse
from posttrain.data.config import DataConfig
from posttrain.data.files import read_file, read_path
from posttrain.data.load import load_rows

ROWS = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(4)]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def put(file: Path, content: str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def refusal(path: Any, split: str = "train") -> str:
    with pytest.raises(ValueError, match=r".+") as caught:
        read_path(path, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


COLUMNS = {key: [row[key] for row in ROWS] for key in ("prompt", "completion")}
JSON_FORMS = {
    "list": json.dumps(ROWS),
    "indented": json.dumps(ROWS, indent=2),
    "lines": lines(ROWS),
    "lines with blank ones": "\n" + lines(ROWS).replace("\n", "\n\n"),
    "under data": json.dumps({"data": ROWS}),
    "splits": json.dumps({"train": ROWS, "test": ROWS[:1]}),
    "splits by other names": json.dumps({"training": ROWS, "dev": ROWS[:1]}),
    "columns": json.dumps(COLUMNS),
    "columns of pandas": json.dumps(
        {key: {str(i): x for i, x in enumerate(column)} for key, column in COLUMNS.items()}
    ),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-gz"])
@pytest.mark.parametrize("form", JSON_FORMS)
def test_json_in_its_forms_and_encodings(tmp_path: Path, form: str, encoding: str) -> None:
    content = JSON_FORMS[form].encode(encoding.removesuffix("-gz"))
    name = "rows.json.gz" if encoding.endswith("gz") else "rows.json"
    packed = gzip.compress(content) if encoding.endswith("gz") else content
    assert read_path(str(put(tmp_path / name, packed)), "train") == ROWS


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_json_lines_in_utf16(tmp_path: Path, encoding: str) -> None:
    text = lines([{"prompt": "größer\u2028", "completion": "大"}]).encode(encoding)
    if encoding != "utf-16":
        text = "\ufeff".encode(encoding) + text
    assert read_path(str(put(tmp_path / "rows.jsonl", text)), "train")[0]["completion"] == "大"


def test_the_splits_of_one_json_file(tmp_path: Path) -> None:
    file = put(tmp_path / "rows.json", JSON_FORMS["splits"])
    assert read_path(str(file), "test") == ROWS[:1]
    assert "holds the splits train, test: choose" in refusal(str(file), "validation")
    with pytest.raises(ValueError, match="holds the splits train, test"):
        list(read_file(file))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", '{"prompt": ["a"], "completion": ["b", "c"]}', "of different lengths: prompt 1"),
        ("a.json", '{"prompt": "a", "completion": "b"}', "with splits or with columns"),
        ("a.json", '{"a": 1}\n{"a": ', "line 2: not valid JSON"),
        ("a.json", '{"a":\n1}\n{"a":\n2}', "not valid JSON (Extra data"),
        ("a.jsonl", json.dumps(ROWS), "if the file is one list, name it .json"),
        ("a.jsonl", json.dumps(ROWS, indent=1), "if the file is one JSON value, name it .json"),
        ("a.jsonl", lines(ROWS)[1:].encode("utf-16-le"), "a.jsonl, line 1: "),
        ("a.csv", "prompt;completion\na;b\n", "the only column is 'prompt;completion'"),
        ("a.csv", "prompt,completion\n你好世界,好的\n".encode("gbk"), "it seems, GBK: convert it"),
        ("a.jsonl", '{"prompt": "你好世界"}\n'.encode("gbk"), "line 1: not UTF-8 text but, it"),
        ("a.txt", "naïve café".encode("latin-1"), "line 1: not UTF-8 text but, it seems, WINDOWS-"),
        ("a.json", "version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        ("a.parquet", "version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        ("a.arrow", "version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        ("a.arrow", "ARROW1 and no more", "not an Arrow file that can be read"),
        ("a.arrow", "no", "save the data as Parquet"),
        ("a.parquet", "PAR1 no", "not a Parquet file"),
        ("a.json", "[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: str | bytes, expected: str
) -> None:
    text = refusal(str(put(tmp_path / name, content)))
    assert expected in text
    assert str(tmp_path / name) in text


def test_spaces_in_the_header_of_a_table_are_layout(tmp_path: Path) -> None:
    """Everywhere or nowhere: in a table without them, a value's own space stays."""
    spaced = put(tmp_path / "a.csv", 'prompt, completion\np0, c0\n"p1", "a, b"\n')
    rows = [{"prompt": "p0", "completion": "c0"}, {"prompt": "p1", "completion": "a, b"}]
    assert read_path(str(spaced), "train") == rows
    plain = put(tmp_path / "b.csv", "prompt,completion\np0, c0\n")
    assert read_path(str(plain), "train") == [{"prompt": "p0", "completion": " c0"}]
    twice = put(tmp_path / "c.csv", "prompt, prompt\na, b\n")
    assert "the column 'prompt' occurs twice" in refusal(str(twice))


def save(folder: Path, form: str) -> None:
    """Save ROWS as two files, in one of the layouts that the split train is read from."""
    first, second = lines(ROWS[:2]), lines(ROWS[2:])
    layouts: dict[str, dict[str, str]] = {
        "parts": {"train-00000-of-00002.jsonl": first, "train-00001-of-00002.jsonl": second},
        "hub": {
            "README.md": "# rows",
            "data/train-00000-of-00002.jsonl": first,
            "data/train-00001-of-00002.jsonl": second,
            "data/test-00000-of-00001.jsonl": first,
        },
        "folder of the split": {"train/0.jsonl": first, "train/1.jsonl": second},
        "word in the names": {"math_train_1.jsonl": first, "math_train_2.jsonl": second},
        "other words": {"a.training.jsonl": first, "b-training.jsonl": second, "a-dev.json": "[]"},
        "shards": {"shard-9.jsonl": first, "shard-10.jsonl": second},
        "hub shards": {"README.md": "# rows", "data/0000.jsonl": first, "data/0001.jsonl": second},
        "card": {
            "README.md": "---\nconfigs:\n- config_name: default\n  data_files:\n"
            "  - split: train\n    path: [x/one.jsonl, y/*.jsonl]\n"
            "  - split: test\n    path: z.jsonl\n---\n# rows",
            "x/one.jsonl": first,
            "y/two.jsonl": second,
            "z.jsonl": first,
        },
        "card with one pattern": {
            "README.md": "---\nconfigs:\n- config_name: all\n  data_files: 'of/*.jsonl'\n---",
            "of/1.jsonl": first,
            "of/2.jsonl": second,
        },
    }
    for name, content in layouts[form].items():
        put(folder / name, content)


LAYOUTS = (
    "parts",
    "hub",
    "folder of the split",
    "word in the names",
    "other words",
    "shards",
    "hub shards",
    "card",
    "card with one pattern",
)


@pytest.mark.parametrize("form", LAYOUTS)
def test_the_files_of_a_split_in_any_layout(tmp_path: Path, form: str) -> None:
    save(tmp_path, form)
    assert read_path(str(tmp_path), "train") == ROWS


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["test.jsonl"], "has no file for split 'train'; found test.jsonl"),
        (["one.jsonl", "two.jsonl"], "has no file for split 'train'; found one.jsonl, two.jsonl"),
        (["train.zip", "notes.md"], "found no data file (notes.md, train.zip)"),
        (["inner/rows.xyz"], "found no data file (inner/)"),
        ([], "found no data file (nothing)"),
        (["train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"], "lacks train-00001-of-"),
    ],
)
def test_a_folder_that_does_not_say_what_to_read(
    tmp_path: Path, files: list[str], expected: str
) -> None:
    for name in files:
        put(tmp_path / name, lines(ROWS))
    assert expected in refusal(str(tmp_path))


def test_a_card_that_names_several_sets_or_lost_files(tmp_path: Path) -> None:
    config = "- config_name: {}\n  data_files:\n  - split: train\n    path: {}\n"
    both = config.format("main", "a/*") + config.format("socratic", "b/*")
    card = put(tmp_path / "README.md", f"---\nconfigs:\n{both}---\n")
    assert "holds the data sets main, socratic by its README.md" in refusal(str(tmp_path))
    card.write_text(f"---\nconfigs:\n{config.format('default', 'a/*')}---\n")
    assert "has no a/*, which its README.md names for the split train" in refusal(str(tmp_path))


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow_files_as_save_to_disk_writes_them(tmp_path: Path, kind: str) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    for i, part in enumerate((table[:2], table[2:])):
        new = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
        with new(tmp_path / f"data-0000{i}-of-00002.arrow", table.schema) as file:
            file.write_table(part)
    for about in ("dataset_info.json", "state.json"):
        put(tmp_path / about, "{}")
    assert read_path(str(tmp_path), "train") == ROWS
    whole = tmp_path.with_name(f"{tmp_path.name} dict")
    (whole / "train").mkdir(parents=True)
    put(whole / "dataset_dict.json", '{"splits": ["train"]}')
    for file in tmp_path.iterdir():
        put(whole / "train" / file.name, file.read_bytes())
    assert read_path(str(whole), "train") == ROWS
    assert "has no file for split 'test'" in refusal(str(whole), "test")


def test_a_list_and_a_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "part-2.jsonl", lines(ROWS[:2]))
    put(tmp_path / "part-10.jsonl", lines(ROWS[2:]))
    monkeypatch.setenv("DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    parts = [f"{tmp_path}/part-2.jsonl", "${DATA}/part-10.jsonl"]
    for path in (f"{tmp_path}/part-*.jsonl", parts, "$DATA/p*.jsonl", ["~/part-*.jsonl"]):
        config = parse(DataConfig, {"path": path}, "run.yaml")
        assert load_rows(config) == ROWS
    assert parse(DataConfig, {"path": parts}, "").label.endswith("part-2.jsonl and 1 more (train)")
    assert "no file matches" in refusal(f"{tmp_path}/q*.jsonl")
    monkeypatch.delenv("DATA")
    with pytest.raises(ValueError, match=r"path: \$DATA/x: the environment variable DATA is not"):
        parse(DataConfig, {"path": "$DATA/x"}, "data")
    for wrong in ({"a": 1}, [], [1, {}], True):
        with pytest.raises(ValueError, match="path: expected a path or a list of paths"):
            parse(DataConfig, {"path": wrong}, "data")
    with pytest.raises(ValueError, match="takes one path, not a list"):
        parse(DataConfig, {"name": "gsm8k", "path": ["a", "b"]}, "data")


@pytest.mark.parametrize("name", ["allenai/tulu-v2.5", "owner/set.v1", "gsm8k"])
def test_a_hub_name_may_have_a_dot(name: str) -> None:
    assert "and the hub did not return it" in refusal(name)


@pytest.mark.parametrize("name", ["rows.jsonl", "some/rows.json.gz", "a/b/c", "./x", "a b/c"])
def test_a_path_is_no_hub_name(name: str) -> None:
    assert f"no such file or folder: {name}" in refusal(name)
