"""Rows in, sequences out: every format, every policy, and one clear line for what is malformed."""

import csv
import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from conftest import shared

from posttrain.common.registry import load
from posttrain.data.config import DataConfig
from posttrain.data.kinds.completion import to_examples as to_completions
from posttrain.data.kinds.prompt import to_examples as to_prompts
from posttrain.data.kinds.text import to_examples as to_texts
from posttrain.data.load import load_rows
from posttrain.data.render import Renderer, make_renderer
from posttrain.data.rows import draw, mix
from posttrain.data.sets import DATASETS
from posttrain.data.texts import texts_of
from posttrain.model.scratch import train_tokenizer
from posttrain.runs.config import parse_config
from posttrain.runs.data import Data, split_off
from posttrain.runs.describe import other_prompts
from posttrain.runs.plan import plan

SCRATCH = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "vocab_size": 300,
    "max_length": 64,
}
GOOD = b'{"prompt": "a", "completion": "b"}\n'
LONG = b'{"prompt": "a", "completion": "%s"}\n' % (b"7" * 200)  # every digit is a token
ROWS = [
    {"prompt": "How many, Tom?", "completion": "42", "note": "x,y"},
    {"prompt": 'He said "no"\nand left\tnow\u2028!\x85', "completion": " Zażółć 日本 ", "note": ""},
    {"prompt": "c", "completion": "d", "note": "z"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the program reads of a pre-trained model before it looks at the data."""
    from transformers import LlamaConfig

    place = tmp_path_factory.mktemp("model")
    train_tokenizer(["abc 123"], 300, 64).save_pretrained(place)
    LlamaConfig(max_position_embeddings=64).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return make_renderer(train_tokenizer(["abc 123"], 300, 64))


def run(data: Any, method: str = "sft", model: dict[str, Any] | None = None, **rest: Any) -> Data:
    """What `posttrain train` does before the first step."""
    tree = {
        "model": model or {"scratch": SCRATCH},
        "data": data,
        "trainer": {"type": method, "max_steps": 1},
    }
    if method == "grpo":
        rest = {"reward": {"type": "math_correctness"}, "rollout": {"max_new_tokens": 8}} | rest
    return plan(parse_config(tree | rest, "run.yaml")).data


def complaint(data: Any, method: str = "sft", **rest: Any) -> str:
    with pytest.raises(ValueError, match=r".+") as caught:
        run(data, method, **rest)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


MALFORMED = [
    ("bad.jsonl", GOOD + b"\n{bad\n", [", line 3: not valid JSON"]),
    ("list.jsonl", GOOD + b"[1]\n", [", line 2: expected an object, got [1]"]),
    ("text.jsonl", GOOD + b'"abc"\n', [', line 2: expected an object, got "abc"']),
    ("latin.jsonl", GOOD + b'{"prompt": "\xe9"}\n', [", line 2: not UTF-8"]),
    ("latin.jsonl.gz", gzip.compress(GOOD * 9 + b"\xe9", mtime=0), [", line 10: not UTF-8"]),
    ("broken.jsonl.gz", gzip.compress(GOOD * 99, mtime=0)[:-12], ["not a complete gzip file"]),
    ("wrong.jsonl.gz", GOOD, ["not a complete gzip file"]),
    ("empty.jsonl", b"", [": no rows"]),
    ("blank.jsonl", b"\n \n", [": no rows"]),
    ("empty.json", b"[]", [": no rows"]),
    ("object.json", b'{"rows": []}', ["a list of rows, or an object with a list under 'data'"]),
    ("bad.json", b'[{"prompt": "a"},\n{"prompt"]', [", line 2: not valid JSON", "column 10)"]),
    ("numbers.json", b'[{"prompt": "a"}, 3]', [", row 2: expected an object"]),
    ("short.csv", b"prompt,completion\na,b\nc\n", [", line 3: expected 2 columns"]),
    ("wide.csv", b"prompt,completion\na,b\nc,d,e\n", [", line 3: expected 2 columns"]),
    ("head.csv", b"prompt,completion\n", [": no rows"]),
    ("open.csv", b'prompt,completion\n"a,b\nc,d\n', [", line 2: a quotation mark is never closed"]),
    (
        "mark.csv",
        b'prompt,completion\na,b\n"c" c,d\n',
        [", line 3: a quotation mark", "double those"],
    ),
    ("twice.csv", b"prompt,completion,prompt\na,b,c\n", [", line 1: the column 'prompt'", "twice"]),
    ("zero.csv", b"prompt,completion\na,b\nc,d\0\n", [", line 3: a null byte", "save it as UTF-8"]),
    ("utf16.csv", "prompt,completion\na,b\n".encode("utf-16")[:-1], ["UTF-16 text", "damaged"]),
    ("cut.jsonl", GOOD + b'{"prompt": "a", "comple\n', [", line 2: not valid", "at, column 17)"]),
    ("commas.tsv", b"prompt,completion\na,b\n", [", row 1: expected the columns prompt+"]),
    ("broken.parquet", b"PAR1 no", ["not a Parquet file"]),
    ("rows.xlsx", b"x", ["unknown file type; expected one of .jsonl, .json, .parquet"]),
    (
        "missing.jsonl",
        GOOD + b'{"prompt": "a", "answer": "b"}\n',
        [", row 2: expected the columns prompt+completion or messages; got prompt, answer"],
    ),
    ("number.jsonl", GOOD + b'{"prompt": 7, "completion": "b"}', [", row 2: prompt must", "'7'"]),
    ("null.jsonl", GOOD + b'{"prompt": "a", "completion": null}', [", row 2: completion must be"]),
    ("none.jsonl", b'{"prompt": "a", "completion": ""}', [": none of the 1 rows is left (1 empty"]),
    ("m1.jsonl", b'{"messages": "Hi"}', [", row 1: messages must be", "'Hi'"]),
    ("m2.jsonl", b'{"messages": [{"role": "user"}]}', [", row 1: messages must be"]),
    ("m3.jsonl", b'{"messages": [{"role": "user", "content": 3}]}', [", row 1: messages must be"]),
    ("m4.jsonl", b'{"messages": ["Hi"]}', [", row 1: messages must be", "['Hi']"]),
    ("m5.jsonl", b'{"messages": []}', [", row 1: no assistant message"]),
    ("m6.jsonl", b'{"messages": [{"role": "user", "content": "a"}]}', ["no assistant message"]),
    ("p1.jsonl", b'{"prompt": [1], "completion": "x"}', [", row 1: prompt must be", "'[1]'"]),
    ("long.jsonl", GOOD + LONG, [", row 2: the row has 20", "max_length=64", "drop or truncate"]),
]


@pytest.mark.parametrize("start", ["folder", "scratch"])
@pytest.mark.parametrize(("name", "content", "parts"), MALFORMED, ids=[m[0] for m in MALFORMED])
def test_malformed_file_is_one_line_that_says_where(
    tmp_path: Path, folder: Path, name: str, content: bytes, parts: list[str], start: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    model = {"name": str(folder)} if start == "folder" else {"scratch": SCRATCH}
    text = complaint({"path": str(file)}, model=model)
    assert str(file) in text
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"path": "nowhere/rows.jsonl"}, "no such file or folder: nowhere/rows.jsonl"),
        ({"path": "./nowhere"}, "no such file or folder: ./nowhere"),
        ({"path": "some/name"}, "some/name: no such local file or folder, and the hub"),
        ({"name": "gsm9k"}, "no data set 'gsm9k'; did you mean gsm8k?"),
        ({"name": "zzz"}, "no data set 'zzz'; known: a"),
        ({"name": "gsm8k", "path": "nowhere"}, "data.path: nowhere does not exist"),
        ({"name": "gsm8k"}, "openai/gsm8k: no such local file or folder, and the hub"),
        (
            {"name": "word_problems", "options": {"familys": "all"}},
            "word_problems has no option 'familys'; known: num_rows, families, seed",
        ),
        (
            {"name": "word_problems", "options": {"num_rows": "many"}},
            "data.options.num_rows: input should be a valid integer",
        ),
        ({"name": "word_problems", "options": {"num_rows": 0}}, "num_rows must be at least 1"),
        ({"name": "word_problems", "options": {"families": "al"}}, "unknown families 'al'"),
        ({"name": "word_problems", "split": "dev"}, "unknown split 'dev': choose one of train"),
        ({"name": "word_problems", "path": "x"}, "word_problems has no option 'path'"),
    ],
)
def test_source_that_is_not_there(data: dict[str, Any], expected: str) -> None:
    assert expected in complaint(data)


def test_folder_without_the_split(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_bytes(GOOD)
    text = complaint({"path": str(tmp_path)})
    assert "has no file for split 'train'; found test.jsonl" in text
    assert run({"path": str(tmp_path), "split": "test"}).tables[0].kept == 1


def test_folder_of_shards(tmp_path: Path) -> None:
    for i in (1, 0):
        row = {"prompt": "a", "completion": str(i)}
        (tmp_path / f"train-0000{i}-of-00002.jsonl").write_text(json.dumps(row))
    (tmp_path / "training.jsonl").write_bytes(GOOD * 5)
    rows = load_rows(DataConfig(path=str(tmp_path)))
    assert [row["completion"] for row in rows] == ["0", "1"]


def test_column_mapping(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    row = {"question": "q", "solution": "s", "answer": "7", "prompt": "old"}
    file.write_text(json.dumps(row))
    columns = {"prompt": "question", "completion": "solution"}
    assert load_rows(DataConfig(path=str(file), columns=columns)) == [
        {"prompt": "q", "completion": "s", "answer": "7"}
    ]
    swapped = DataConfig(path=str(file), columns={"prompt": "answer", "answer": "question"})
    assert load_rows(swapped) == [{"prompt": "7", "answer": "q", "solution": "s"}]
    text = complaint({"path": str(file), "columns": {"prompt": "Question"}})
    assert "no column 'Question'; the row has question, solution, answer, prompt" in text


def test_gsm8k_row_without_an_answer(tmp_path: Path) -> None:
    for answer, problem in (("3", "must end in '#### x', got '3'"), (3, "must be a non-blank")):
        file = tmp_path / "train.jsonl"
        file.write_text(json.dumps({"question": "x", "answer": answer}))
        text = complaint({"name": "gsm8k", "path": str(tmp_path)})
        assert f"{tmp_path} (train), row 1: column answer {problem}" in text


@pytest.mark.parametrize(("split", "rows"), [("train", 7473), ("test", 1319)])
def test_gsm8k(split: str, rows: int) -> None:
    place = shared("data/gsm8k")
    loaded = load_rows(DataConfig(name="gsm8k", path=str(place), split=split))
    assert len(loaded) == rows
    assert all(row["completion"].endswith(f"#### {row['answer']}") for row in loaded)
    assert all(row["prompt"] and row["answer"] for row in loaded)
    one_file = DataConfig(name="gsm8k", path=str(place / f"{split}.jsonl"), split=split)
    assert load_rows(one_file) == loaded


def as_csv(delimiter: str) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue().encode()


def as_parquet() -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), out)
    return out.getvalue()


FORMATS = {
    "jsonl": lambda: "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode(),
    "json": lambda: json.dumps(ROWS, indent=1).encode(),
    "data.json": lambda: json.dumps({"version": 1, "data": ROWS}).encode(),
    "csv": lambda: as_csv(","),
    "tsv": lambda: as_csv("\t"),
    "parquet": as_parquet,
}


@pytest.mark.parametrize(
    ("kind", "form"),
    [(k, f) for k in FORMATS for f in ("as it is", "gz", "bom") if (k, f) != ("parquet", "bom")],
)
def test_formats_give_equal_rows(tmp_path: Path, kind: str, form: str) -> None:
    content = FORMATS[kind]()
    file = tmp_path / f"rows.{kind}{'.gz' if form == 'gz' else ''}"
    content = b"\xef\xbb\xbf" + content if form == "bom" else content
    file.write_bytes(gzip.compress(content) if form == "gz" else content)
    assert load_rows(DataConfig(path=str(file))) == ROWS


def test_txt_is_one_text(tmp_path: Path) -> None:
    for name, content in (("a.txt", b"one\n\ntwo\n"), ("b.txt.gz", gzip.compress(b"one\n\ntwo\n"))):
        (tmp_path / name).write_bytes(content)
        assert load_rows(DataConfig(path=str(tmp_path / name))) == [{"text": "one\n\ntwo\n"}]


def test_long_field_of_a_csv(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text\n" + "x" * 200_000)
    assert len(load_rows(DataConfig(path=str(file)))[0]["text"]) == 200_000


def eval_rows(tree: dict[str, Any]) -> list[dict[str, Any]]:
    return split_off(parse_config(tree, "test"), [])[1]


def test_rows_that_are_trained_on_are_no_evaluation(tmp_path: Path) -> None:
    """One file has the same rows in every split."""
    file, other = tmp_path / "rows.jsonl", tmp_path / "test.jsonl"
    for path in (file, other):
        path.write_text('{"text": "a"}\n')
    tree: dict[str, Any] = {
        "model": {"name": "m"},
        "data": {"path": str(file)},
        "trainer": {"type": "pretrain", "max_steps": 1, "eval_steps": 1},
        "eval": {},
    }
    message = r"rows\.jsonl is the file that is trained on: .*set eval.data.path"
    with pytest.raises(ValueError, match=message):
        eval_rows(tree)
    same = {"path": str(tmp_path / "." / "rows.jsonl"), "split": "validation"}
    tree["eval"] = {"data": [{"path": str(other)}, same]}
    with pytest.raises(ValueError, match="is the file that is trained on"):
        eval_rows(tree)
    tree["eval"] = {"data": tree["data"]}  # said outright, it is meant
    assert eval_rows(tree) == [{"text": "a"}]
    tree["eval"] = {"data": {"path": str(other)}}
    assert eval_rows(tree) == [{"text": "a"}]


def test_each_part_of_a_mixture_has_its_share_of_the_evaluation(tmp_path: Path) -> None:
    sections = []
    for name, count in (("a", 30), ("b", 10), ("c", 1)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(f'{{"text": "{name}{i}"}}\n' for i in range(count)))
        sections.append({"path": str(file)})
    tree: dict[str, Any] = {
        "model": {"name": "m"},
        "data": {"name": "word_problems"},
        "trainer": {"type": "pretrain", "max_steps": 1, "eval_steps": 1},
        "eval": {"data": sections, "max_samples": 8},
    }
    found = [row["text"] for row in eval_rows(tree)]
    assert [text[0] for text in found] == [*"aaaaaabb"]
    tree["eval"]["max_samples"] = None
    assert len(eval_rows(tree)) == 41


@pytest.mark.parametrize("kind", [lambda i: i // 600, lambda i: i % 20], ids=["sorted", "cyclic"])
def test_a_part_of_the_rows_has_all_kinds(kind: Any) -> None:
    rows = [{"kind": kind(i), "place": i} for i in range(12_000)]
    part = draw(rows, 200)
    counts = Counter(row["kind"] for row in part)
    assert len(part) == 200
    assert len(counts) == 20
    assert max(counts.values()) <= 25
    assert [row["place"] for row in part] == sorted(row["place"] for row in part)
    assert draw(rows, 200) == part
    assert draw(rows, None) == draw(rows, 99_999) == rows


def test_an_evaluation_that_asks_otherwise_than_training_is_noted() -> None:
    tree: dict[str, Any] = {
        "model": {"name": "m"},
        "data": {"name": "word_problems", "prompt_template": "chat"},
        "trainer": {"type": "sft", "max_steps": 1, "eval_steps": 1},
    }

    def notes(**evaluation: Any) -> list[str]:
        return other_prompts(parse_config(tree | {"eval": evaluation}, "test"))

    assert notes() == []
    assert notes(data=tree["data"] | {"split": "test"}) == []
    (note,) = notes(data={"name": "word_problems", "split": "test"}, tasks=["gsm8k"])
    assert note == (
        "note: word_problems (test), gsm8k: evaluated with another prompt template than the "
        "training rows (chat)"
    )
    assert notes(tasks=["gsm8k"])[0].startswith("note: gsm8k: ")
    tree["data"] = {"name": "word_problems"}
    assert notes(tasks=["gsm8k"]) == []


def test_max_samples(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(FORMATS["jsonl"]())
    assert load_rows(DataConfig(path=str(file), max_samples=2)) == ROWS[:2]
    assert load_rows(DataConfig(path=str(file), max_samples=9)) == ROWS


@pytest.mark.parametrize(
    ("weight", "times"), [(1.0, {1: 10}), (2.0, {2: 10}), (0.5, {1: 5}), (2.3, {2: 7, 3: 3})]
)
def test_mixture_weights(weight: float, times: dict[int, int]) -> None:
    first, second = list(range(10)), list(range(100, 104))
    mixed = Counter(mix([(first, weight), (second, 1.0)], seed=0))
    assert all(mixed[row] == 1 for row in second)
    assert Counter(mixed[row] for row in first if mixed[row]) == times
    assert mix([(first, weight)], seed=3) == mix([(first, weight)], seed=3)


def test_mixture_by_config(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD * 10)
    (tmp_path / "b.jsonl").write_bytes(GOOD * 4)
    parts = [
        {"path": str(tmp_path / "a.jsonl"), "weight": 0.5},
        {"path": str(tmp_path / "b.jsonl"), "weight": 2},
    ]
    data = run(parts)
    assert len(data.examples) == 5 + 8
    assert [table.rows for table in data.tables] == [10, 4]
    assert data.hash() == run(parts).hash()
    parts[0]["template"] = "plain"
    assert "the same data.template" in complaint(parts)
    assert "leaves the mixture without rows" in complaint([parts[0] | {"weight": 0.01}])


@pytest.mark.parametrize(
    ("policy", "kept", "dropped", "truncated", "longest"),
    [("drop", 2, 1, 0, 6), ("truncate", 3, 0, 1, 64)],
)
def test_overlong_policies(
    tmp_path: Path, policy: str, kept: int, dropped: int, truncated: int, longest: int
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(GOOD + LONG + GOOD)
    data = run({"path": str(file)}, length={"on_overlong": policy})
    (table,) = data.tables
    assert (table.rows, table.kept, table.dropped, table.truncated) == (3, kept, dropped, truncated)
    assert len(data.examples) == kept
    assert max(len(s) for (s,) in data.examples) == longest
    assert table.length_max > 200, "lengths are those before the cut"
    assert table.length_p50 == 6
    assert table.trained_tokens == sum(int(s.loss_mask.sum()) for (s,) in data.examples)


def test_error_for_an_overlong_row_names_it_and_its_length(renderer: Renderer) -> None:
    rows = [json.loads(GOOD), json.loads(LONG)]
    length = len(renderer.training_sequence(rows[1]))
    message = f"set, row 2: the row has {length} tokens, more than length.max_length=64; raise it"
    with pytest.raises(ValueError, match=message):
        to_completions(rows, renderer, "set", 64, "error")
    sequences, table = to_completions(rows, renderer, "set", length, "error")
    assert [len(s) for (s,) in sequences] == [6, length]
    assert (table.kept, table.length_max) == (2, length)


def test_split_keeps_every_token(renderer: Renderer) -> None:
    text = "abc 123 " * 20
    ids = renderer.text_ids(text)
    pieces, table = to_texts([{"text": text}], renderer, "set", 16, "split")
    assert [token for (piece,) in pieces for token in piece.input_ids.tolist()] == ids
    assert all(len(piece) <= 16 for (piece,) in pieces)
    assert not any(piece.loss_mask[0] for (piece,) in pieces)
    assert all(piece.loss_mask[1:].all() for (piece,) in pieces)
    assert (table.rows, table.kept, table.dropped, table.truncated) == (1, 1, 0, 1)
    assert table.trained_tokens == len(ids) - len(pieces)


def test_truncation_that_leaves_nothing_to_train_on_is_a_drop(renderer: Renderer) -> None:
    rows = [{"prompt": "7" * 100, "completion": "y"}, json.loads(GOOD)]
    sequences, table = to_completions(rows, renderer, "set", 16, "truncate")
    assert len(sequences) == table.kept == 1
    assert (table.dropped, table.truncated) == (1, 0)


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_all_rows_dropped(tmp_path: Path, method: str) -> None:
    file = tmp_path / "rows.jsonl"
    row = {"prompt": "7" * 200, "completion": "y", "answer": "1"}
    file.write_text((json.dumps(row) + "\n") * 2)
    text = complaint({"path": str(file)}, method, length={"on_overlong": "drop"})
    assert "none of the 2 rows is left (shortest 20" in text
    assert "raise length.max_length" in text


def test_overlong_prompts(renderer: Renderer) -> None:
    rows = [{"prompt": "a"}, {"prompt": "7" * 100}]
    prompts, table = to_prompts(rows, renderer, "set", 16, "drop")
    assert [p.row for p in prompts] == rows[:1]
    assert (table.rows, table.kept, table.dropped) == (2, 1, 1)
    with pytest.raises(ValueError, match=r"row 2: the prompt has 10. tokens.*on_overlong: drop$"):
        to_prompts(rows, renderer, "set", 16, "error")


def test_limits_of_the_model(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(GOOD)
    data = {"path": str(file)}
    assert "the model takes at most 64 tokens" in complaint(data, length={"max_length": 65})
    text = complaint(data, "grpo", rollout={"max_new_tokens": 64})
    assert "rollout.max_new_tokens=64 leaves no room for a prompt" in text


def test_eval_split_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(GOOD)
    tree = {
        "model": {"scratch": SCRATCH},
        "data": {"path": str(tmp_path)},
        "trainer": {"type": "sft", "max_steps": 1, "eval_steps": 1},
        "eval": {},
    }
    with pytest.raises(ValueError, match=r"no file for split 'test'; found train\.jsonl"):
        plan(parse_config(tree, "run.yaml"))


@pytest.mark.parametrize("name", DATASETS)
def test_named_data_sets_say_what_they_are(name: str) -> None:
    import sys

    assert (sys.modules[load(DATASETS[name]).__module__].__doc__ or "").strip()


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "b", "rejected": ["c", "d"]},
        {"instruction": "a", "input": "b", "chosen": "c", "rejected": "d"},
        {
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "chosen": {"role": "assistant", "content": "c"},
            "rejected": [[{"content": "d"}]],
        },
        {
            "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
            "chosen": {"from": "gpt", "value": "c"},
            "rejected": {"from": "gpt", "value": "d"},
        },
        {"text": "a", "prompt": "b", "completion": "c", "input": "d", "other": "e", "score": 1},
        {
            "text": None,
            "messages": [None, {"content": None}, {"content": "a"}],
            "prompt": 7,
            "chosen": ["b", "c"],
            "rejected": "d",
        },
    ],
)
def test_a_tokenizer_is_trained_on_every_text_that_is_learned_from(row):
    assert sorted(texts_of(row)) == ["a", "b", "c", "d"]


def test_a_mapping_the_wrong_way_round(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"instruction": "a", "output": "b"}')
    section = DataConfig(path=str(file), columns={"instruction": "prompt", "output": "completion"})
    message = r"no column 'prompt'; .*; write prompt: instruction \(ours: the file's\)"
    with pytest.raises(ValueError, match=message):
        load_rows(section)


def test_a_relative_path_that_is_not_there_says_from_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"no such file or folder: x.jsonl .in {tmp_path}."):
        load_rows(DataConfig(path="x.jsonl"))
