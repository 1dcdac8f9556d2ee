"""Data sets read from their original files: instructions, facts, propaganda, plain text."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import shared
from test_datasets import Rows, rows_of, write

from posttrain.data.config import DataConfig
from posttrain.data.files import read_lines
from posttrain.data.load import load_rows
from posttrain.data.origin import origin_of
from posttrain.data.sets import (
    alpaca,
    codealpaca,
    magicoder,
    metamathqa,
    smoltalk,
    svamp,
    text,
)

INSTRUCTION = {"instruction": "Sort the list.", "input": "3, 1", "output": "1, 3"}
QUERY = {
    "query": "What is 1+1?",
    "response": "It is 2.\nThe answer is: 2",
    "type": "GSM_Rephrased",
    "original_question": "1+1?",
}
TASK = {"lang": "python", "problem": "Double x.", "solution": "def double(x):\n    return 2 * x"}
CHAT = {
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
    "source": "made",
}
TRAP = {
    "ID": "chal-1",
    "Body": "A pack costs 76 dollars. There is 25 dollars off ",
    "Question": "How much is it?",
    "Equation": "( 76.0 - 25.0 )",
    "Answer": 51.0,
    "Type": "Subtraction",
}
CLAIM = {
    "id": 0,
    "json_file_id": "1.json",
    "label": "half-true",
    "claim": "It rains.",
    "topics": ["x"],
    "originator": "a-speaker",
    "title": "Governor",
    "party": "Texas",
    "justification": "It did.\n",
}
STATEMENT = (
    "1.json|pants-fire|It rains.|weather|a-speaker|Governor|Texas|none|1|2|3|4|5|a show"
).replace("|", "\t")
ARTICLE = "A title\n\nThey are vile “liars” and thieves.\nIt was so, and so it is.\n"
LABELS = ("1\tLoaded_Language\t18\t22", "1\tRepetition\t44\t68", "1\tName_Calling,Labeling\t18\t30")


def jsonl(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def propaganda(folder: Path, labels: bytes | None = None, article: bytes | None = None) -> Path:
    """A data set in the form of the task's own."""
    (folder / "train-articles").mkdir(parents=True, exist_ok=True)
    (folder / "train-articles/article1.txt").write_bytes(article or ARTICLE.encode())
    lines = "\n".join(LABELS).encode() if labels is None else labels
    (folder / "train-task2-TC.labels").write_bytes(lines)
    return folder


# --- malformed files ------------------------------------------------------------------------------

MALFORMED: list[tuple[str, str, bytes, str]] = [
    ("alpaca", "alpaca_data.json", b'[{"instruction": "a"},\n{', "line 2: not valid JSON"),
    ("alpaca", "alpaca_data.json", jsonl({"a": 1})[:-1], "expected a list of rows, or an object"),
    (
        "codealpaca",
        "code_alpaca_20k.json",
        b"[" + jsonl(INSTRUCTION | {"output": 3}) + b"]",
        "row 1: columns output and input must be strings",
    ),
    (
        "codealpaca",
        "code_alpaca_20k.json",
        b'[{"prompt": "a", "output": "b"}]',
        "row 1: no column instruction; the row has prompt, output; data.path must be",
    ),
    (
        "magicoder",
        "data-oss_instruct-decontaminated.jsonl",
        jsonl(TASK, TASK | {"solution": " "}),
        "row 2: column solution must be a non-blank string, got ' '; correct the row",
    ),
    ("magicoder", "data-oss_instruct-decontaminated.jsonl", jsonl(TASK)[:-9], "line 1: not valid"),
    (
        "metamathqa",
        "MetaMathQA-395K.json",
        b'[{"query": "a", "response": null}]',
        "row 1: column response must be a non-blank string, got 'None'",
    ),
    (
        "metamathqa",
        "MetaMathQA-395K.json",
        b'[{"question": "a", "answer": "b", "output": 3}]',
        "row 1: column output must be a string, got '3'; correct the row",
    ),
    ("metamathqa", "MetaMathQA-395K.json", b"[3]", "row 1: expected an object"),
    (
        "smoltalk",
        "train.jsonl",
        jsonl(CHAT, {"messages": "Hi"}),
        "row 2: column messages must be a list of {role, content} messages; got 'Hi'; correct",
    ),
    (
        "smoltalk",
        "train.jsonl",
        jsonl({"messages": CHAT["messages"][:1]}),
        "row 1: column messages has no assistant message",
    ),
    ("smoltalk", "train.parquet", b"PAR1 no", "not a Parquet file"),
    (
        "svamp",
        "SVAMP.json",
        b"[" + jsonl(TRAP | {"Answer": "many"}) + b"]",
        "row 1: column Answer must be a number, got 'many'; correct the row",
    ),
    (
        "svamp",
        "SVAMP.json",
        b'[{"Body": "a", "Answer": 1}]',
        "row 1: no column Question; the row has Body, Answer",
    ),
    (
        "liar",
        "train.tsv",
        f"{STATEMENT}\n1.json\ttrue\tIt rains.\n".encode(),
        "line 2: expected 14 tab-separated columns, got 3; data.path must be LIAR's own .tsv",
    ),
    (
        "liar",
        "train.tsv",
        STATEMENT.replace("pants-fire", "maybe").encode(),
        "line 1: column 2 (label) must be one of pants-fire, false",
    ),
    (
        "liar",
        "train.tsv",
        STATEMENT.replace("It rains.", " ").encode(),
        "line 1: column 3 (statement) is blank; remove the line",
    ),
    ("liar", "train.tsv", f"{STATEMENT}\n".encode() + b"\xe9", "line 2: not UTF-8 text"),
    (
        "liar_plus",
        "train2.jsonl",
        jsonl(CLAIM, CLAIM | {"label": "maybe"}),
        "row 2: column label must be one of pants-fire, false",
    ),
    (
        "liar_plus",
        "train2.jsonl",
        jsonl({k: v for k, v in CLAIM.items() if k != "justification"}),
        "row 1: column justification must be a string; the row has id, json_file_id",
    ),
    ("liar_plus", "train2.jsonl", jsonl(CLAIM | {"claim": None}), "row 1: column claim must be"),
    (
        "semeval2020_task11",
        "train-task2-TC.labels",
        b"1\tDoubt\t3",
        "line 1: expected 4 tab-separated columns (article, technique, begin, end), got 3",
    ),
    (
        "semeval2020_task11",
        "train-task2-TC.labels",
        b"1\tDoubt\t3\t5\n1\tdoubt\t3\t5",
        "line 2: column 2 must be one of Appeal_to_Authority",
    ),
    (
        "semeval2020_task11",
        "train-task2-TC.labels",
        b"2\tDoubt\t3\t5",
        "line 1: column 1: there is no article2.txt",
    ),
    (
        "semeval2020_task11",
        "train-task2-TC.labels",
        b"1\tDoubt\t-3\t5",
        "line 1: columns 3 and 4 must be offsets, got '-3' and '5'",
    ),
    (
        "semeval2020_task11",
        "train-task2-TC.labels",
        b"1\tDoubt\t3\t999",
        "line 1: columns 3 and 4: 3 to 999 is no part of article1.txt, which has 69 characters",
    ),
    (
        "semeval2020_task11",
        "train-task2-TC.labels",
        b"1\tDoubt\t5\t5",
        "5 to 5 is no part of article1.txt, which has 69 characters",
    ),
    ("semeval2020_task11", "train-articles/article1.txt", b"a\nb\xe9", "line 2: not UTF-8 text"),
    ("text", "train.txt", b" \n", "the file is blank; remove it"),
    ("text", "train.txt", b"\xe9", "line 1: not UTF-8 text"),
]


@pytest.mark.parametrize(
    ("name", "file", "content", "expected"), MALFORMED, ids=[m[0] for m in MALFORMED]
)
def test_a_malformed_file_is_one_line_at_once(
    tmp_path: Path, name: str, file: str, content: bytes, expected: str
) -> None:
    if name == "semeval2020_task11":
        propaganda(tmp_path)
    (tmp_path / file).write_bytes(content)
    split = "test" if name == "svamp" else "train"
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r".+") as caught:
        rows_of(name, split, tmp_path)
    assert time.perf_counter() - start < 2
    assert str(tmp_path / file) in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "split", "place", "expected"),
    [
        *(
            (name, "dev", ".", "has only the split train, not 'dev': use another data set")
            for name in ("alpaca", "codealpaca", "magicoder")
        ),
        ("svamp", "train", ".", "svamp has only the split test, not 'train': it is for evaluation"),
        ("metamathqa", "dev", ".", "unknown split 'dev': choose one of train, test"),
        ("smoltalk", "dev", ".", "unknown split 'dev': choose one of train, test"),
        ("liar", "dev", ".", "unknown split 'dev': choose one of train, validation, test"),
        ("liar_plus", "dev", ".", "unknown split 'dev': choose one of train, validation, test"),
        ("semeval2020_task11", "test", ".", "unknown split 'test': choose one of train, dev"),
        ("text", "dev", ".", "unknown split 'dev': choose one of train, test"),
        ("alpaca", "train", ".", "has no alpaca_data.json; found other.md"),
        ("codealpaca", "train", ".", "no code_alpaca_20k.json or code_alpaca_2k.json; found oth"),
        ("magicoder", "train", ".", "has no data-oss_instruct-decontaminated.jsonl; found"),
        ("metamathqa", "test", ".", "has no GSM8K_Backward.jsonl; found other.md"),
        ("svamp", "test", ".", "has no SVAMP.json; found other.md"),
        ("liar", "validation", ".", "has no valid.tsv; found other.md"),
        ("liar_plus", "validation", ".", "has no val2.jsonl; found other.md"),
        ("semeval2020_task11", "train", ".", "has no folder train-articles; found other.md"),
        ("semeval2020_task11", "train", "nowhere", "has no folder train-articles; found nothing"),
        ("smoltalk", "train", ".", "has no file for split 'train'; found no data file"),
        ("text", "train", ".", "has no .txt file"),
        ("text", "train", "other.md", "expected a .txt file"),
        *(
            (name, "train", "nowhere", "nowhere does not exist")
            for name in (
                "alpaca",
                "magicoder",
                "metamathqa",
                "liar",
                "liar_plus",
                "smoltalk",
                "text",
            )
        ),
        ("liar", "train", None, "liar: set data.path to a folder with train.tsv, valid.tsv and te"),
        ("liar_plus", "train", None, "`posttrain data download liar_plus` fetches them"),
        ("semeval2020_task11", "train", None, "set data.path to the folder with train-articles/"),
        ("text", "train", None, "set data.path to a .txt file or a folder"),
        ("alpaca", "train", None, "tatsu-lab/alpaca: no such local file or folder, and the hub"),
        ("svamp", "test", None, "ChilleD/SVAMP: no such local file or folder, and the hub"),
    ],
)
def test_a_source_that_is_not_there(
    tmp_path: Path, name: str, split: str, place: str | None, expected: str
) -> None:
    (tmp_path / "other.md").write_text("x")
    with pytest.raises(ValueError, match=r".+") as caught:
        rows_of(name, split, None if place is None else tmp_path / place)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "split", "row", "asked"),
    [
        (alpaca, "train", INSTRUCTION, ("tatsu-lab/alpaca", "train")),
        (codealpaca, "train", INSTRUCTION, ("sahil2801/CodeAlpaca-20k", "train")),
        (magicoder, "train", TASK, ("ise-uiuc/Magicoder-OSS-Instruct-75K", "train")),
        (metamathqa, "train", QUERY, ("meta-math/MetaMathQA", "train")),
        (smoltalk, "test", CHAT, ("HuggingFaceTB/smoltalk", "test", "all")),
        (svamp, "test", TRAP, ("ChilleD/SVAMP", "train+test")),
    ],
)
def test_rows_of_the_hub_are_those_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, split: str, row: Any, asked: Any
) -> None:
    calls = []

    def read_hub(*arguments: str) -> Rows:
        calls.append(arguments)
        return [row]

    monkeypatch.setattr(module, "read_hub", read_hub)
    name = module.__name__.rpartition(".")[2]
    loaded = rows_of(name, split)
    assert calls == [asked]
    assert loaded == rows_of(name, split, write(tmp_path / f"{split}.jsonl", [row]))
    monkeypatch.setattr(module, "read_hub", lambda *_: [row, {}])
    with pytest.raises(ValueError, match=rf"^{asked[0]} .*, row 2: "):
        rows_of(name, split)


# --- instructions and problems --------------------------------------------------------------------


def test_rows_of_instructions(tmp_path: Path) -> None:
    rows = [INSTRUCTION, INSTRUCTION | {"input": ""}, INSTRUCTION | {"output": "\n"}]
    (tmp_path / "alpaca_data.json").write_text(json.dumps(rows))
    assert rows_of("alpaca", "train", tmp_path) == [
        {"prompt": "Sort the list.\n\n3, 1", "completion": "1, 3"},
        {"prompt": "Sort the list.", "completion": "1, 3"},
    ]


def test_code_alpaca_as_it_is() -> None:
    rows = rows_of("codealpaca", "train", shared("data/codealpaca"))
    assert len(rows) == 2_017 - 2, "two have no answer"
    assert rows[0] == {
        "prompt": "What are the distinct values from the given list?\n\n"
        "dataList = [3, 9, 3, 5, 7, 9, 5]",
        "completion": "The distinct values from the given list are 3, 5, 7 and 9.",
    }
    assert all(row["prompt"].strip() and row["completion"].strip() for row in rows)


def test_both_parts_of_magicoder(tmp_path: Path) -> None:
    (tmp_path / magicoder.FILES["oss"]).write_bytes(jsonl(TASK))
    (tmp_path / magicoder.FILES["evol"]).write_bytes(jsonl({"instruction": "a", "response": "b"}))
    (row,) = rows_of("magicoder", "train", tmp_path)
    assert row == {"prompt": "Double x.", "completion": TASK["solution"], "lang": "python"}
    data = DataConfig(name="magicoder", path=str(tmp_path), options={"part": "evol"})
    assert load_rows(data) == [{"prompt": "a", "completion": "b"}]


def test_rows_of_metamathqa(tmp_path: Path) -> None:
    (tmp_path / "MetaMathQA-395K.json").write_text(json.dumps([QUERY, QUERY | {"response": "2"}]))
    expected = {"prompt": "What is 1+1?", "original_question": "1+1?"}
    assert rows_of("metamathqa", "train", tmp_path) == [
        expected | {"completion": "It is 2.\nThe answer is: 2", "answer": "2"},
        expected | {"completion": "2"},
    ]


def test_gsm8k_backward_as_it_is() -> None:
    rows = rows_of("metamathqa", "test", shared("data/metamath"))
    assert len(rows) == 1_270
    assert rows[0]["prompt"].startswith("Josh decides to try flipping a house.  He buys a house fo")
    assert rows[0]["prompt"].endswith("what is the value of unknown variable x?")
    assert rows[0]["answer"] == "80000"
    assert all(row["answer"] and row["completion"] and row["original_question"] for row in rows)


@pytest.mark.parametrize(
    ("given", "answer"), [(51.0, "51"), ("145.0", "145"), (0.5, "0.5"), (1234567.0, "1234567")]
)
def test_rows_of_svamp(tmp_path: Path, given: Any, answer: str) -> None:
    (tmp_path / "SVAMP.json").write_text(json.dumps([TRAP | {"Answer": given}]))
    assert rows_of("svamp", "test", tmp_path) == [
        {
            "prompt": "A pack costs 76 dollars. There is 25 dollars off How much is it?",
            "answer": answer,
            "equation": "( 76.0 - 25.0 )",
            "type": "Subtraction",
        }
    ]


def test_rows_of_smoltalk(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.jsonl", [CHAT])
    write(tmp_path / "train-00001-of-00002.jsonl", [CHAT | {"source": "other"}])
    rows = rows_of("smoltalk", "train", tmp_path)
    assert rows == [CHAT, CHAT | {"source": "other"}]


# --- plain text -----------------------------------------------------------------------------------


def test_one_text_is_cut_at_a_line(tmp_path: Path) -> None:
    whole = "".join(f"line {i}\n" for i in range(100))
    (tmp_path / "book.txt.gz").write_bytes(gzip.compress(whole.encode()))
    for path in (tmp_path, tmp_path / "book.txt.gz"):
        (train,), (test,) = (rows_of("text", split, path) for split in ("train", "test"))
        assert train["text"] + test["text"] == whole
        assert test["text"].startswith("line 9")
        assert 9 <= test["text"].count("\n") <= 11
    (tmp_path / "short.txt").write_text("one line")
    with pytest.raises(ValueError, match="too few lines for the split train: give a longer file"):
        rows_of("text", "train", tmp_path / "short.txt")


def test_files_of_text_are_split_by_name_or_by_their_text(tmp_path: Path) -> None:
    for i in range(60):
        file = tmp_path / f"{i % 3}" / f"{i}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"text number {i}")
    train, test = (rows_of("text", split, tmp_path) for split in ("train", "test"))
    assert len(train) + len(test) == 60
    assert 2 <= len(test) <= 14
    (tmp_path / "0" / "0.txt").rename(tmp_path / "other.txt")
    assert {row["text"] for row in rows_of("text", "test", tmp_path)} == {r["text"] for r in test}
    (tmp_path / "train-1.txt").write_text("a")
    assert rows_of("text", "train", tmp_path) == [{"text": "a"}]
    with pytest.raises(ValueError, match="is in the split test: name them after train and test"):
        rows_of("text", "test", tmp_path)


def test_text_as_it_is() -> None:
    place = shared("data/text")
    (train,), (test,) = (rows_of("text", split, place) for split in ("train", "test"))
    assert len(train["text"]) + len(test["text"]) == 1_115_394
    assert 111_000 < len(test["text"]) < 112_000
    assert train["text"].startswith("First Citizen:\nBefore we proceed any further, hear me speak.")
    assert train["text"].endswith("\n")


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folder", "split"),
    [
        ("gsm8k", "gsm8k", "train"),
        ("gsm8k", "gsm8k", "test"),
        ("mbpp", "mbpp", "test"),
        ("humaneval", "humaneval", "test"),
        ("math", "math", "test"),
        ("liar", "liar", "train"),
        ("liar", "liar", "validation"),
        ("liar", "liar", "test"),
        ("metamathqa", "metamath", "test"),
    ],
)
def test_the_declared_number_of_rows_is_that_of_the_files(
    name: str, folder: str, split: str
) -> None:
    origin = origin_of(name)
    assert origin is not None
    assert origin.rows[split] == len(rows_of(name, split, shared(f"data/{folder}")))


def test_lines_are_not_csv(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_bytes('a\t"b\r\nc"\x85\u2028d\n\n'.encode())
    assert read_lines(tmp_path / "x.tsv") == ['a\t"b', 'c"\x85\u2028d', ""]
    assert text.SPLITS == ("train", "test")
