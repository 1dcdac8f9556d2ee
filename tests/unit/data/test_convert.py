"""`data prepare`: what goes into the two files, whatever the order of rows, and what is refused."""

import gzip
import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import tiny
from command import Capture, complaint, output_of, state
from conftest import shared
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from posttrain.data.config import DataConfig
from posttrain.data.files import read_file
from posttrain.data.load import load_rows
from posttrain.data.prepare import convert
from posttrain.data.prepare.convert import expand, prepare
from posttrain.data.prepare.digests import DUPLICATE, TRAIN, VALIDATION, Digests, drop_duplicates
from posttrain.data.prepare.standard import Preparation
from posttrain.data.rows import Row
from posttrain.data.verl import from_verl
from posttrain.runs.config import parse_config
from posttrain.runs.plan import plan

RL = {
    "data_source": "numbers",
    "prompt": [{"role": "user", "content": "1+1?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"split": "train", "index": 0},
}
QUESTIONS = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(200)]


def write(file: Path, rows: list[Any]) -> Path:
    text = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    file.write_bytes(gzip.compress(text) if file.suffix == ".gz" else text)
    return file


def prepared(folder: Path, rows: list[Any], **options: Any) -> dict[str, list[Row]]:
    """The rows of both files."""
    folder.mkdir(exist_ok=True)
    prepare([str(write(folder / "rows.jsonl", rows))], Preparation(folder / "out", **options))
    return parts(folder / "out")


def parts(folder: Path) -> dict[str, list[Row]]:
    return {
        name: list(read_file(folder / f"{name}.parquet"))
        for name in ("train", "validation")
        if (folder / f"{name}.parquet").exists()
    }


def as_set(rows: list[Row]) -> set[str]:
    return {json.dumps(row, sort_keys=True) for row in rows}


# --- the split ------------------------------------------------------------------------------------


def test_every_row_is_in_one_file_and_about_the_share_is_held_out(tmp_path: Path) -> None:
    files = prepared(tmp_path, QUESTIONS, val_split=0.25)
    assert as_set(files["train"]) | as_set(files["validation"]) == as_set(QUESTIONS)
    assert len(files["train"]) + len(files["validation"]) == 200
    assert 30 <= len(files["validation"]) <= 70


def test_the_seed_draws_the_split(tmp_path: Path) -> None:
    first, second = (prepared(tmp_path / str(s), QUESTIONS, val_split=0.5, seed=s) for s in (0, 1))
    assert as_set(first["validation"]) != as_set(second["validation"])


def test_a_row_keeps_its_part_when_others_come(tmp_path: Path) -> None:
    few = prepared(tmp_path / "few", QUESTIONS[:100], val_split=0.5)
    all_ = prepared(tmp_path / "all", QUESTIONS, val_split=0.5)
    assert as_set(few["validation"]) <= as_set(all_["validation"])


rows_of_few_texts = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": st.sampled_from(["a", "A ", "b", " b", "c", "d", ""]),
            "completion": st.sampled_from(["x", "y", " "]),
            "group": st.integers(0, 3),
        }
    ),
    max_size=30,
)


# every example writes files: to look for a smaller one would take minutes
@settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(rows_of_few_texts, st.integers(0, 9), st.randoms(use_true_random=False), st.booleans())
def test_no_prompt_and_no_group_in_both_and_the_order_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[Row],
    seed: int,
    chance: random.Random,
    by_group: bool,
) -> None:
    group_key = "group" if by_group else None
    # so that there is always something to train on
    rows = rows + [{"prompt": f"p{i}", "completion": "x", "group": 4 + i} for i in range(40)]
    options: dict[str, Any] = {"val_split": 0.5, "seed": seed, "group_key": group_key}
    folder = tmp_path_factory.mktemp("split")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("posttrain.data.prepare.digests.NUM_FILES", 4)  # 256 take most of the time
        check_split(folder, rows, chance, options)


def check_split(
    folder: Path, rows: list[Row], chance: random.Random, options: dict[str, Any]
) -> None:
    by_group = options["group_key"] is not None
    files = prepared(folder / "one", rows, **options)
    ways = [lambda row: row["prompt"].strip().lower(), lambda row: row["group"]]
    for of in ways if by_group else ways[:1]:
        assert not {of(r) for r in files["train"]} & {of(r) for r in files["validation"]}
    kept = [row for part in files.values() for row in part]
    assert len(kept) == len(as_set(kept)), "a duplicate is left"
    whole = {json.dumps(r, sort_keys=True) for r in rows if r["prompt"] and r["completion"].strip()}
    assert as_set(kept) <= whole
    if not by_group:
        assert as_set(kept) == whole
    again = chance.sample(rows, len(rows))
    cut = chance.randrange(len(rows))
    names = [
        str(write(folder / name, part))
        for name, part in (("b.jsonl.gz", again[:cut]), ("a.jsonl", again[cut:]))
    ]
    prepare(names, Preparation(folder / "two", **options))
    assert {k: as_set(v) for k, v in parts(folder / "two").items()} == {
        k: as_set(v) for k, v in files.items()
    }


def test_the_same_files_have_the_same_bytes(tmp_path: Path, monkeypatch: Any) -> None:
    prepared(tmp_path, QUESTIONS)
    before = state(tmp_path / "out")
    prepared(tmp_path, QUESTIONS)
    assert state(tmp_path / "out") == before


def test_rows_are_written_in_chunks_as_if_they_were_one(tmp_path: Path, monkeypatch: Any) -> None:
    """Columns that come late, and types that widen from chunk to chunk, included."""
    rows = [
        row | {"score": 1 if i < 150 else 0.5} | ({"late": i} if i > 180 else {})
        for i, row in enumerate(QUESTIONS)
    ]
    whole = prepared(tmp_path / "whole", rows)
    monkeypatch.setattr(convert, "CHUNK_ROWS", 7)
    monkeypatch.setattr("posttrain.data.prepare.digests.BUFFER", 64)
    assert prepared(tmp_path / "parts", rows) == whole
    assert whole["train"][0]["score"] == 1.0
    assert whole["train"][0]["late"] is None
    table = pyarrow.parquet.ParquetFile(tmp_path / "parts/out/train.parquet")
    assert table.num_row_groups > 20


def test_equal_digests_are_found_across_buffers_and_files(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr("posttrain.data.prepare.digests.BUFFER", 16 * 5)
    chance = random.Random(0)
    numbers = [chance.randrange(300) for _ in range(1000)]
    import numpy as np

    outcomes = np.array([number % 2 for number in numbers], np.uint8)
    digests = Digests(tmp_path / "rows")
    for number in numbers:
        digests.add(str(number).encode())
    drop_duplicates(digests, outcomes)
    kept = [number for number, outcome in zip(numbers, outcomes) if outcome != DUPLICATE]
    assert sorted(kept) == sorted(set(numbers))
    firsts = [i for i, number in enumerate(numbers) if number not in numbers[:i]]
    assert [i for i, outcome in enumerate(outcomes) if outcome in (TRAIN, VALIDATION)] == firsts


# --- columns --------------------------------------------------------------------------------------


def test_columns_are_renamed_and_others_kept_where_they_have_one_simple_type(
    tmp_path: Path, capsys: Capture
) -> None:
    rows = [
        {
            "question": f"q{i}",
            "reply": "r",
            "final": str(i),
            "level": i,
            "tests": ["a"],
            "none": None,
            "mixed": "x" if i else 1,
            "nested": {"a": i},
        }
        for i in range(3)
    ]
    file = write(tmp_path / "rows.jsonl", rows)
    keys = ["--prompt-key", "question", "--response-key", "reply", "--answer-key", "final"]
    arguments = ["data", "prepare", file, "--output-dir", tmp_path / "out", "--val-split", 0, *keys]
    text = output_of(capsys, *arguments)
    assert "mixed: values of different types" in text
    assert "nested: not simple: name it in keep to keep it" in text
    assert "none: no values" in text
    expected = [
        {"prompt": f"q{i}", "completion": "r", "answer": str(i), "level": i, "tests": ["a"]}
        for i in range(3)
    ]
    assert parts(tmp_path / "out") == {"train": expected}
    output_of(capsys, *arguments, "--keep", "nested")
    assert parts(tmp_path / "out")["train"][1] == {
        "prompt": "q1",
        "completion": "r",
        "answer": "1",
        "nested": {"a": 1},
    }
    assert "--keep: no column 'x'" in complaint(capsys, *arguments, "--keep", "x")
    assert "mixed has values of different types" in complaint(capsys, *arguments, "--keep", "mixed")


def test_duplicates_and_empty_rows_are_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completion": "b"},
        {"completion": "b", "prompt": "a"},
        {"prompt": "a", "completion": "c"},
        {"prompt": " ", "completion": "c"},
        {"prompt": "d", "completion": None},
        {"prompt": [], "completion": "x"},
    ]
    file = write(tmp_path / "rows.jsonl", rows)
    done = prepare([str(file)], Preparation(tmp_path, val_split=0))
    assert done.num_rows == 6
    assert done.dropped == {"equal another row": 1, "have an empty prompt or answer": 3}
    assert parts(tmp_path)["train"] == [rows[0], rows[2]]


def test_rows_that_differ_in_what_is_not_kept_are_duplicates(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "id": i} for i in range(3)]
    assert len(prepared(tmp_path, rows, val_split=0)["train"]) == 3
    assert len(prepared(tmp_path, rows, val_split=0, keep=())["train"]) == 1


def test_objects_of_many_keys_are_not_looked_into(tmp_path: Path) -> None:
    rows = [row | {"meta": [{f"key{i}": i}]} for i, row in enumerate(QUESTIONS)]
    begin = time.perf_counter()
    assert "meta" not in prepared(tmp_path, rows * 20)["train"][0]
    assert time.perf_counter() - begin < 5


def test_pairs_stay_pairs(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{i}?", "chosen": chat("x", "y")[1:], "rejected": chat("x", "z")[1:]}
        for i in range(20)
    ]
    files = prepared(tmp_path, rows, val_split=0.5)
    assert as_set([row for part in files.values() for row in part]) == as_set(rows)


def test_verls_own_columns_need_not_be_named(tmp_path: Path) -> None:
    """Also where no others are kept."""
    rows = [{"prompt": f"{i}?", "answer": i, "data_source": "x", "ability": "y"} for i in range(3)]
    files = prepared(tmp_path, rows, format="verl_rl", keep=(), val_split=0)
    assert {(row["data_source"], row["ability"]) for row in files["train"]} == {("x", "y")}


def test_an_answer_in_verls_column_is_kept_once(tmp_path: Path) -> None:
    rows: list[Row] = [{"prompt": RL["prompt"], "response": "It is 2."}]
    named = {"prompt": "1+1?", "completion": "It is 2."}
    assert prepared(tmp_path / "theirs", rows, val_split=0)["train"] == [named]
    options = {"val_split": 0, "response_key": "response"}
    assert prepared(tmp_path / "mapped", rows, **options)["train"] == [named]
    both = [{"prompt": "1+1?", "completion": "2", "response": "It is 2."}]
    assert prepared(tmp_path / "ours", both, val_split=0)["train"] == both


def test_a_column_that_is_named_goes_before_messages(tmp_path: Path) -> None:
    rows = [{"messages": chat("a", "b"), "question": "x", "answer": "y"}]
    files = prepared(tmp_path, rows, val_split=0, prompt_key="question")
    assert files["train"] == [{"prompt": "x", "answer": "y"}]


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]


def test_messages_stay_messages_and_chats_of_one_beginning_lie_together(tmp_path: Path) -> None:
    rows = [
        {"messages": chat(f"q{i % 30}", f"a{i}", "more", "b")[: 2 + i % 3 // 2 * 2]}
        for i in range(90)
    ]
    files = prepared(tmp_path, rows, val_split=0.5)
    assert as_set(files["train"] + files["validation"]) == as_set(rows)
    asked_of = [{row["messages"][0]["content"] for row in part} for part in files.values()]
    assert not asked_of[0] & asked_of[1]
    assert len(asked_of[0] | asked_of[1]) == 30


def test_chats_that_differ_in_their_system_message_lie_together(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "system", "content": f"s{k}"}, *chat(f"q{i}", f"a{k}")]}
        for i in range(30)
        for k in range(2)
    ]
    files = prepared(tmp_path, rows, val_split=0.5)
    asked_of = [{row["messages"][1]["content"] for row in part} for part in files.values()]
    assert not asked_of[0] & asked_of[1]


def test_prompts_that_two_groups_share_are_not_in_both_files(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i % 100}", "completion": str(i), "id": i // 5} for i in range(200)]
    file = write(tmp_path / "rows.jsonl", rows)
    config = Preparation(tmp_path, val_split=0.5, group_key="id")
    done = prepare([str(file)], config)
    (reason,) = done.dropped
    assert reason == "have a prompt that other groups have in the training part"
    assert sum(done.kept.values()) + done.dropped[reason] == 200
    files = parts(tmp_path)
    assert not {r["prompt"] for r in files["train"]} & {r["prompt"] for r in files["validation"]}


def test_a_row_of_two_groups_is_trained_on_whichever_comes_first(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i % 20}", "completion": "x", "id": i} for i in range(40)]
    options: dict[str, Any] = {"val_split": 0.5, "group_key": "id", "keep": ()}
    files = prepared(tmp_path / "one", rows, **options)
    again = prepared(tmp_path / "two", rows[::-1], **options)
    assert {k: as_set(v) for k, v in files.items()} == {k: as_set(v) for k, v in again.items()}


def test_the_files_say_how_they_were_made(tmp_path: Path) -> None:
    prepared(tmp_path, QUESTIONS, seed=3)
    metadata = pyarrow.parquet.read_schema(tmp_path / "out/train.parquet").metadata
    made = json.loads(metadata[b"posttrain"])
    (file,) = made["files"]
    assert file["path"] == str(tmp_path / "rows.jsonl")
    assert file["bytes"] == (tmp_path / "rows.jsonl").stat().st_size
    assert file["sha256"] == state(tmp_path)["rows.jsonl"]
    assert made["options"]["seed"] == 3
    assert made["num_rows"] == 200 == sum(made["kept"].values())


def test_the_folder_is_what_a_run_trains_on(tmp_path: Path) -> None:
    prepared(tmp_path, [{"prompt": f"{i}?", "completion": f"#### {i}"} for i in range(50)])
    tree = tiny.run_config(tmp_path / "run")
    tree["data"] = {"path": str(tmp_path / "out")}
    tree["eval"] = {"data": {"path": str(tmp_path / "out"), "split": "validation"}}
    tree["trainer"]["eval_steps"] = 2
    data = plan(parse_config(tree, "run.yaml")).data
    assert len(data.examples) + len(data.eval_examples) == 50
    assert data.eval_examples


def test_gsm8k(tmp_path: Path, capsys: Capture) -> None:
    keys = ["--prompt-key", "question", "--response-key", "answer"]
    files = shared("data/gsm8k") / "t*.jsonl"
    text = output_of(capsys, "data", "prepare", files, "--output-dir", tmp_path, *keys)
    assert "8,792 rows" in text
    assert sum(len(rows) for rows in parts(tmp_path).values()) == 8_792


# --- verl -----------------------------------------------------------------------------------------


def test_rows_in_verls_rl_layout_need_no_mapping(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([RL, RL]), tmp_path / "train.parquet")
    rows = load_rows(DataConfig(path=str(tmp_path)))
    assert [(row["prompt"], row["answer"]) for row in rows] == [("1+1?", "2")] * 2
    tree = tiny.run_config(tmp_path / "run", "grpo")
    tree |= {"data": {"path": str(tmp_path)}, "reward": {"type": "math_correctness"}}
    prompts = plan(parse_config(tree, "run.yaml")).data.prompts
    assert [prompt.row["answer"] for prompt in prompts] == ["2", "2"]


def test_rows_in_verls_sft_layout_need_no_mapping(tmp_path: Path) -> None:
    row = {"prompt": RL["prompt"], "response": "It is 2."}
    write(tmp_path / "train.jsonl", [row])
    (found,) = load_rows(DataConfig(path=str(tmp_path)))
    assert (found["prompt"], found["completion"]) == ("1+1?", "It is 2.")
    # whoever maps them himself may go on doing so
    mapped = DataConfig(path=str(tmp_path), columns={"completion": "response"})
    assert load_rows(mapped)[0]["completion"] == "It is 2."
    tree = tiny.run_config(tmp_path / "run")
    tree["data"] = {"path": str(tmp_path)}
    assert len(plan(parse_config(tree, "run.yaml")).data.examples) == 1


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "completion": "b", "response": "c"},
        {"prompt": "a", "chosen": "b", "rejected": "c", "response": "d"},
        {"text": "a"},
        {"reward_model": "x", "prompt": "a"},
    ],
)
def test_other_rows_are_left_alone(row: Row) -> None:
    assert from_verl(row) == row


def test_verls_rl_layout_is_written_and_read_back(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}+1?", "answer": i + 1, "level": 3} for i in range(40)]
    options = {"format": "verl_rl", "data_source": "sums", "ability": "math", "val_split": 0.5}
    files = prepared(tmp_path, rows, **options)
    for name, part in files.items():
        for index, row in enumerate(part):
            number = int(row["reward_model"]["ground_truth"])
            assert row == {
                "data_source": "sums",
                "prompt": [{"role": "user", "content": f"{number - 1}+1?"}],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": str(number)},
                "extra_info": {"split": name, "index": index},
                "level": 3,
            }
    back = load_rows(DataConfig(path=str(tmp_path / "out"), split="train"))
    assert as_set([{k: row[k] for k in ("prompt", "answer")} for row in back]) <= as_set(
        [{"prompt": row["prompt"], "answer": str(row["answer"])} for row in rows]
    )
    # and prepared again as posttrain's own
    again = prepare(
        [str(tmp_path / "out/*.parquet")], Preparation(tmp_path / "again", val_split=0, keep=())
    )
    assert again.kept == {"train": 40}
    assert parts(tmp_path / "again")["train"][0].keys() == {"prompt", "answer"}


def test_verls_sft_layout_is_written(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    files = prepared(tmp_path, rows, format="verl_sft", val_split=0)
    assert files["train"] == [{"messages": chat("a", "b")}, {"messages": chat("c", "d")}]


# --- what is refused ------------------------------------------------------------------------------

GOOD = b'{"prompt": "a", "completion": "b"}\n'
REFUSED: list[tuple[bytes, list[str], str]] = [
    (GOOD + b'{"prompt": "a" "b"}\n', [], "line 2: not valid JSON (Expecting ',' delimiter, col"),
    (GOOD + b"[1]\n", [], "line 2: expected an object, got [1]"),
    (GOOD + b'{"prompt": "\xe9"}\n', [], "line 2: not UTF-8 text"),
    (GOOD + b"[" * 200_000, [], "line 2: cannot be read as JSON"),
    (GOOD + b'{"prompt": ' + b"9" * 5_000 + b"}", [], "line 2: cannot be read as JSON"),
    (GOOD + b'{"question": "a"}', [], "line 2: expected prompt or messages; got question: name"),
    (GOOD + b'{"prompt": "a"}', [], "line 2: a row with prompt as a string, but"),
    (
        GOOD + b'{"prompt": 7, "completion": "b"}',
        [],
        "line 2: prompt must be a string, or messages",
    ),
    (
        GOOD + b'{"prompt": "a", "completion": 7}',
        [],
        "line 2: completion must be a string, or messages",
    ),
    (GOOD + b'{"messages": "Hi"}', [], "line 2: messages must be a list of {role, content}"),
    (GOOD + b'{"messages": [{"role": "user"}, {"role": 1, "content": "x"}]}', [], "line 2: messag"),
    (GOOD + b'{"messages": [{"role": "user", "content": "x"}]}', [], "prepare them separately"),
    (
        GOOD + b'{"prompt": "\\ud800", "completion": "b"}',
        [],
        "line 2: prompt contains '\\ud800', half of a character",
    ),
    (
        GOOD,
        ["--prompt-key", "question"],
        "line 1: no column 'question'; the row has prompt, completion: name one that every row has",
    ),
    (
        GOOD,
        ["--response-key", "reply"],
        "line 1: no column 'reply'; the row has prompt, completion: name one",
    ),
    (GOOD, ["--group-key", "id"], "line 1: no value in 'id'; the row has prompt, completion: name"),
    (
        GOOD,
        ["--format", "verl_rl"],
        "line 1: verl_rl needs data_source, a string; got None: set it",
    ),
    (
        GOOD,
        ["--format", "verl_rl", "--data-source", "x", "--ability", "y"],
        "line 1: verl_rl needs an answer, a string or a number; got None: name its column",
    ),
    (b'{"prompt": "a"}', ["--format", "verl_sft"], "line 1: verl_sft needs a completion of the pr"),
    (GOOD, ["--format", "verl"], "--format: 'verl' is not known: choose one of posttrain, verl"),
    (GOOD, ["--val-split", "1"], "--val-split: must be at least 0 and below 1; got 1"),
    (b"\n\n", [], "no rows"),
    (b'{"prompt": "", "completion": "b"}', [], "no row is left to train on: of 1, 0 are for"),
    (
        GOOD
        + b'{"prompt": "a", "completion": "b", "answer": 1}\n'
        + b'{"prompt": "a", "completion": "b", "answer": "x"}',
        [],
        "answer has values of different",
    ),
]


@pytest.mark.parametrize(("content", "options", "expected"), REFUSED, ids=[r[2] for r in REFUSED])
def test_what_is_malformed_gets_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: Capture, content: bytes, options: list[str], expected: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    before = state(tmp_path)
    begin = time.perf_counter()
    text = complaint(capsys, "data", "prepare", file, "--output-dir", tmp_path / "out", *options)
    assert time.perf_counter() - begin < 2
    assert expected in text
    assert options or "rows.jsonl" in text or "answer has" in text or "no row is left" in text
    assert state(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_files_are_found(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", []), write(tmp_path / "b.jsonl.gz", [])
    odd = write(tmp_path / "c[1].jsonl", [])
    assert expand([str(tmp_path / "*.jsonl*")]) == [a, b, odd]
    assert expand([str(b), str(tmp_path / "*.jsonl*")]) == [b, a, odd]
    assert expand([str(odd)]) == [odd]
    for pattern, message in [
        (tmp_path / "*.json", "no file matches"),
        (tmp_path, "is a folder: name its files"),
        (write(tmp_path / "d.csv", []), "expected .jsonl or .parquet"),
    ]:
        with pytest.raises(ValueError, match=message):
            expand([str(pattern)])


def test_its_own_files_are_not_overwritten(tmp_path: Path) -> None:
    prepared(tmp_path, QUESTIONS)
    with pytest.raises(ValueError, match=r"train\.parquet would be overwritten"):
        prepare([str(tmp_path / "out/train.parquet")], Preparation(tmp_path / "out"))


def test_files_that_change_in_between_are_noticed(tmp_path: Path, monkeypatch: Any) -> None:
    file, whole = write(tmp_path / "rows.jsonl", QUESTIONS), convert.write

    def changed(*arguments: Any) -> None:
        write(file, QUESTIONS[:-1])
        whole(*arguments)

    monkeypatch.setattr(convert, "write", changed)
    with pytest.raises(ValueError, match="the files changed while they were read"):
        prepare([str(file)], Preparation(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# --- large files, and the end in between ----------------------------------------------------------


def start(file: Path, output_dir: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "posttrain",
        "data",
        "prepare",
        str(file),
        "--output-dir",
        str(output_dir),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def write_large(file: Path, size: int) -> int:
    """Rows of 40 to 2,000 characters, every 20th of them a second time; returns their number."""
    chance, words, number = random.Random(0), [f"word{i}" for i in range(1000)], 0
    with file.open("w") as out:
        while out.tell() < size:
            lines = []
            for _ in range(1000):
                text = " ".join(chance.choices(words, k=chance.randrange(2, 160)))
                row = {"prompt": f"{number}: {text}", "completion": text[::-1], "id": number}
                number += 1
                lines += [json.dumps(row)] * (2 if number % 20 == 0 else 1)
            out.write("\n".join(lines) + "\n")
    return number


@pytest.mark.slow
def test_killed_half_way_no_half_file_is_left(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    number = write_large(file, 40_000_000)
    process = start(file, tmp_path / "out")
    while not (tmp_path / "out/.prepare/train.parquet").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list((tmp_path / "out").glob("*.parquet"))
    process = start(file, tmp_path / "out")
    process.communicate()
    assert process.returncode == 0
    assert sum(len(rows) for rows in parts(tmp_path / "out").values()) == number
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        "train.parquet",
        "validation.parquet",
    ]


@pytest.mark.slow
def test_a_file_of_2_gb_takes_less_than_500_mb_of_memory(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    number = write_large(file, 2 * 10**9)
    process, peak = start(file, tmp_path / "out"), 0
    while process.poll() is None:
        # not the resource usage of a child, which begins with the memory of its parent
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = max(peak, *map(int, re.findall(r"VmHWM:\s+(\d+) kB", status)), 0)
        time.sleep(0.05)
    assert process.returncode == 0
    assert process.stdout is not None
    print(f"{number:,} rows, {peak * 1024 / 1e6:,.0f} MB\n{process.stdout.read().decode()}")
    kept = [
        pyarrow.parquet.ParquetFile(tmp_path / f"out/{name}.parquet").metadata.num_rows
        for name in ("train", "validation")
    ]
    assert sum(kept) == number
    assert 0 < peak * 1024 < 500e6
    file.unlink()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--prompt-key", "question"], "--prompt-key"),
        (["--response-key", "reply"], "--response-key"),
        (["--group-key", "id"], "--group-key"),
        (["--format", "verl_rl"], "--data-source"),
        (["--format", "verl_rl", "--data-source", "x", "--ability", "y"], "--answer-key"),
        (["--keep", "x"], "--keep"),
        (["--val-split", "1"], "--val-split"),
    ],
)
def test_a_wrong_setting_is_named_as_the_option_that_the_user_wrote(
    tmp_path: Path, capsys: Capture, options: list[str], named: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(GOOD)
    text = complaint(capsys, "data", "prepare", file, "--output-dir", tmp_path / "out", *options)
    assert text.startswith(f"error: {named}: ")
