"""The named data sets that are read from files or the hub: forms, splits, and malformed rows."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from conftest import shared

from posttrain.data.config import DataConfig
from posttrain.data.load import load_rows
from posttrain.data.sets import DATASETS, competition_math, humaneval, mbpp
from posttrain.data.sets.fever import LABELS, side
from posttrain.rewards import code
from posttrain.rewards.build import check_columns
from posttrain.rewards.rules import math
from posttrain.rewards.rules.classification import Classification
from posttrain.rewards.rules.classification import build as build_classification
from posttrain.rewards.scoring import score
from posttrain.sandbox import pool

Rows = list[dict[str, Any]]


def write(file: Path, rows: Rows) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def rows_of(name: str, split: str, path: Path | None = None) -> Rows:
    return load_rows(DataConfig(name=name, split=split, path=None if path is None else str(path)))


def scores(reward: Any, rows: Rows, completions: list[str]) -> list[float | None]:
    check_columns(reward, rows, "rows")
    return score(reward, [row["prompt"] for row in rows], completions, [[] for _ in rows], rows)


@pytest.fixture(scope="module")
def sandbox() -> Any:
    try:
        built = code.build(code.CodeExecution(workers=2))
    except ValueError as error:
        pytest.skip(f"programs can not be run here: {error}")
    yield built
    pool.close(built.pool)


CLAIM = {"id": 1, "label": "REFUTES", "claim": "The moon is a cheese.", "evidence": [[[1, 2]]]}
PROBLEM = {"problem": "What is $1+1$?", "solution": r"It is $\boxed{2}$.", "answer": "2"}
VERL = {
    "prompt": [{"role": "user", "content": "What is $1+1$? Box it."}],
    "reward_model": {"ground_truth": "2", "style": "rule"},
    "extra_info": {"level": "Level 3", "teacher_cots": [r"It is $\boxed{2}$."]},
}
TASK = {
    "task_id": 601,
    "text": "Write a function that doubles.",
    "test_setup_code": "",
    "code": "def double(x):\r\n    return 2 * x",
    "test_list": ["assert double(2) == 4", "assert double(5) == 10", "assert double(0) == 0"],
}
FUNCTION = {
    "task_id": "x/0",
    "prompt": "def double(x):\n",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    "entry_point": "double",
}
GOOD = {"fever": CLAIM, "math": PROBLEM, "mbpp": TASK, "humaneval": FUNCTION}
FILES = {
    "fever": "paper_dev.jsonl",
    "math": "math500_test.jsonl",
    "mbpp": "mbpp.jsonl",
    "humaneval": "HumanEval.jsonl",
}


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("fever", {"claim": None}, "column claim must be a non-blank string, got 'None'"),
        ("fever", {"claim": " "}, "column claim must be"),
        ("fever", {"label": "TRUE"}, "column label must be one of SUPPORTS, REFUTES, NOT"),
        ("fever", {"label": None}, "column label must be a non-blank string"),
        ("fever", {"label": ["REFUTES"]}, """got "['REFUTES']"; correct"""),
        ("math", {"problem": None}, "expected problem and answer"),
        ("math", {"answer": 2}, "expected problem and answer"),
        ("math", {"answer": None, "solution": "It is 2."}, "a solution that boxes it"),
        ("math", {"problem": None, "reward_model": {}}, "reward_model.ground_truth; the row has"),
        ("math", {**VERL, "prompt": None}, "reward_model.ground_truth; the row has"),
        ("math", {**VERL, "prompt": []}, "reward_model.ground_truth; the row has"),
        (
            "math",
            {**VERL, "reward_model": {"style": "x"}},
            "reward_model.ground_truth; the row has",
        ),
        ("mbpp", {"text": None}, "column text must be a non-blank string"),
        ("mbpp", {"code": 7}, "column code must be a non-blank string"),
        ("mbpp", {"task_id": "601"}, "expected task_id, a number; got '601'; correct"),
        ("mbpp", {"test_list": []}, "expected test_list, a list of strings; got '[]'"),
        ("mbpp", {"test_list": "assert double(2) == 4"}, "expected test_list"),
        ("mbpp", {"test_list": 3}, "expected test_list"),
        ("mbpp", {"test_list": [None]}, "expected test_list"),
        ("mbpp", {"test_setup_code": 3}, "expected test_setup_code, a string; got '3'"),
        ("humaneval", {"entry_point": None}, "column entry_point must be a non-blank string"),
        ("humaneval", {"canonical_solution": 1}, "column canonical_solution must"),
    ],
)
def test_a_malformed_row_is_named_with_its_file(
    tmp_path: Path, name: str, changes: dict[str, Any], expected: str
) -> None:
    file = write(tmp_path / FILES[name], [GOOD[name], GOOD[name] | changes])
    for path in (file, tmp_path):
        with pytest.raises(ValueError, match=r"row 2: ") as caught:
            rows_of(name, "test", path)
        assert f"{file}, row 2: " in str(caught.value)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "split", "place", "expected"),
    [
        *((name, "test", "nowhere", "data.path: ") for name in GOOD),
        *((name, "test", "nowhere", "nowhere does not exist") for name in GOOD),
        ("fever", "test", ".", "has no paper_test.jsonl or shared_task_dev.jsonl or paper_dev"),
        ("fever", "train", ".", "has no train.jsonl; found other.txt"),
        ("math", "train", ".", "has no file for split 'train'; found other.txt"),
        ("mbpp", "train", ".", "has no mbpp.jsonl; found other.txt"),
        ("humaneval", "test", ".", "has no HumanEval.jsonl.gz or HumanEval.jsonl; found other.txt"),
        ("fever", "dev", ".", "unknown split 'dev': choose one of train, test"),
        ("mbpp", "dev", ".", "unknown split 'dev': choose one of train, validation, test, prompt"),
        ("humaneval", "train", ".", "humaneval has only the split test, not 'train'"),
        ("fever", "train", None, "fever: set data.path to a folder with train.jsonl"),
        ("fever", "train", None, "https://fever.ai"),
        ("math", "dev", None, "unknown split 'dev': choose one of train, test"),
        (
            "math",
            "train",
            None,
            "DigitalLearningGmbH/MATH-lighteval: no such local file or folder,",
        ),
        ("math", "test", None, "HuggingFaceH4/MATH-500: no such local file or folder, and the hub"),
        ("mbpp", "train", None, "google-research-datasets/mbpp: no such local file or folder"),
        ("humaneval", "test", None, "openai/openai_humaneval: no such local file or folder"),
    ],
)
def test_a_source_that_is_not_there(
    tmp_path: Path, name: str, split: str, place: str | None, expected: str
) -> None:
    (tmp_path / "other.txt").write_text("")
    with pytest.raises(ValueError, match=r".+") as caught:
        rows_of(name, split, None if place is None else tmp_path / place)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("module", "name", "split", "row", "asked"),
    [
        (
            competition_math,
            "math",
            "train",
            PROBLEM | {"answer": None, "level": "Level 4"},
            ("DigitalLearningGmbH/MATH-lighteval", "train"),
        ),
        (
            competition_math,
            "math",
            "test",
            PROBLEM | {"level": 4},
            ("HuggingFaceH4/MATH-500", "test"),
        ),
        (mbpp, "mbpp", "train", TASK, ("google-research-datasets/mbpp", "train", "full")),
        (humaneval, "humaneval", "test", FUNCTION, ("openai/openai_humaneval", "test")),
    ],
)
def test_rows_of_the_hub_are_those_of_a_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    split: str,
    row: dict[str, Any],
    asked: tuple[str, ...],
) -> None:
    calls = []

    def read_hub(*arguments: str) -> Rows:
        calls.append(arguments)
        return [row]

    monkeypatch.setattr(module, "read_hub", read_hub)
    (loaded,) = rows_of(name, split)
    assert calls == [asked]
    assert [loaded] == rows_of(name, split, write(tmp_path / f"{split}.jsonl", [row]))
    assert name != "math" or (loaded["answer"], loaded["level"]) == ("2", 4)
    monkeypatch.setattr(module, "read_hub", lambda *_: [row, {}])
    with pytest.raises(ValueError, match=rf"^{asked[0]} {split}, row 2: (expected|no column)"):
        rows_of(name, split)


# --- fever ----------------------------------------------------------------------------------------

CLAIMS = [
    CLAIM | {"id": i, "claim": f"Claim number {i % 260} is made.", "label": LABELS[i % 3]}
    for i in range(300)
]


def claims(rows: Rows) -> list[str]:
    return [row["prompt"].partition("\nClaim: ")[2] for row in rows]


def test_a_claim_with_half_a_character_has_a_side(tmp_path: Path) -> None:
    """The renderer then says which row it is."""
    file = write(tmp_path / "claims.jsonl", [CLAIM | {"claim": "A \ud800 moon."}] * 2)
    assert len(rows_of("fever", side("A \ud800 moon."), file)) == 2


def test_a_row_of_fever(tmp_path: Path) -> None:
    file = write(tmp_path / "claims.jsonl", [CLAIM] * 2)
    row = rows_of("fever", side(CLAIM["claim"]), file)[1]
    assert row["completion"] == row["label"] == "REFUTES"
    assert row["prompt"].endswith("\nClaim: The moon is a cheese.")
    assert all(label in row["prompt"] for label in LABELS)
    reward = build_classification(Classification(labels=list(LABELS)))
    assert scores(reward, [row] * 3, ["REFUTES", "Answer: refutes.", "SUPPORTS"]) == [1, 1, 0]


def test_one_file_is_split_by_the_text_of_the_claim_alone(tmp_path: Path) -> None:
    file = write(tmp_path / "paper_dev.jsonl", CLAIMS)
    train, test = (rows_of("fever", split, file) for split in ("train", "test"))
    assert sorted(claims(train) + claims(test)) == sorted(row["claim"] for row in CLAIMS)
    assert not set(claims(train)) & set(claims(test))
    assert 0.04 < len(test) / len(CLAIMS) < 0.18
    assert [rows_of("fever", s, tmp_path) for s in ("train", "test")] == [train, test]
    # other neighbours, other labels, other ids, other spaces and case
    others = [
        row | {"claim": f"  {row['claim'].upper()} ", "label": "SUPPORTS", "id": 0}
        for row in CLAIMS[250::-2]
    ]
    small = rows_of("fever", "test", write(tmp_path / "other.jsonl", others))
    assert {c.lower() for c in claims(small)} <= {c.lower() for c in claims(test)}
    assert len(small) >= 5


def test_the_side_of_a_claim_does_not_change_from_one_release_to_the_next() -> None:
    sides = [side(f"Claim number {i} is made.") for i in range(40)]
    assert [i for i, found in enumerate(sides) if found == "test"] == [4, 10, 12, 16, 32, 37]


def test_official_files_are_their_own_splits(tmp_path: Path) -> None:
    def only(name: str) -> Rows:
        return [CLAIM | {"claim": name}] * 12

    for name in ("train", "paper_dev"):
        write(tmp_path / f"{name}.jsonl", only(name))
    (tmp_path / "shared_task_test.jsonl").write_text('{"id": 1, "claim": "no label"}\n')
    assert claims(rows_of("fever", "train", tmp_path)) == ["train"] * 12
    for name in ("paper_dev", "shared_task_dev", "paper_test"):
        write(tmp_path / f"{name}.jsonl", only(name))
        assert claims(rows_of("fever", "test", tmp_path)) == [name] * 12
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(ValueError, match=r"has no train\.jsonl; found paper_dev\.jsonl, paper_te"):
        rows_of("fever", "train", tmp_path)


def test_fever_as_it_is() -> None:
    place = shared("data/fever")
    train, test = (rows_of("fever", split, place) for split in ("train", "test"))
    assert len(train) + len(test) == 9_999
    assert 900 <= len(test) <= 1_100
    assert not {c.casefold() for c in claims(train)} & {c.casefold() for c in claims(test)}
    for rows in (train, test):
        shares = Counter(row["label"] for row in rows)
        assert set(shares) == set(LABELS)
        assert min(shares.values()) > 0.3 * len(rows)


# --- math -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "level"),
    [({"level": 2}, 2), ({"level": "Level 5"}, 5), ({"level": "Level ?"}, None), ({}, None)],
)
def test_a_problem_in_its_plain_form(tmp_path: Path, changes: Any, level: int | None) -> None:
    (row,) = rows_of("math", "test", write(tmp_path / "test.jsonl", [PROBLEM | changes]))
    assert row.pop("level", None) == level
    assert row == {
        "prompt": "What is $1+1$? Let's think step by step and output the final answer within "
        r"\boxed{}.",
        "completion": r"It is $\boxed{2}$.",
        "answer": "2",
    }


def test_a_problem_in_verls_form(tmp_path: Path) -> None:
    file = tmp_path / "train-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([VERL, VERL]), file)
    expected = {
        "prompt": "What is $1+1$? Box it.",
        "completion": r"It is $\boxed{2}$.",
        "answer": "2",
        "level": 3,
    }
    assert rows_of("math", "train", tmp_path) == [expected, expected]
    bare = {"prompt": "1+1?", "reward_model": {"ground_truth": "2"}}
    file = write(tmp_path / "bare.jsonl", [bare])
    assert rows_of("math", "train", file) == [{"prompt": "1+1?", "answer": "2"}]


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} and then $\boxed{\text{a } \{2\}}$", r"\text{a } \{2\}"),
        (r"is $\boxed 7$ there", "7"),
        (r"is $\boxed {7}$", "7"),
        (r"\fbox{4} or \fbox{3}", "3"),
        (r"\boxed{}", ""),
        (r"\boxed{1", None),
        ("nothing", None),
    ],
)
def test_the_last_box(solution: str, answer: str | None) -> None:
    assert competition_math.last_box(solution) == answer


@pytest.mark.parametrize(("split", "rows", "unanswered"), [("train", 6_936, 2), ("test", 500, 0)])
def test_math_as_it_is(split: str, rows: int, unanswered: int) -> None:
    loaded = rows_of("math", split, shared("data/math"))
    assert len(loaded) == rows
    assert sum(not row["answer"] for row in loaded) == unanswered
    assert all(row["prompt"].endswith(competition_math.INSTRUCTION) for row in loaded)
    # what the solution boxes is the answer: so it is where no file says it
    boxes = [competition_math.last_box(row["completion"]) for row in loaded]
    other = [
        (b, r["answer"]) for b, r in zip(boxes, loaded) if (b or "").strip() != r["answer"].strip()
    ]
    assert len(other) <= 1
    assert {row.get("level", 1) for row in loaded} <= {1, 2, 3, 4, 5}
    reward = math.build(math.MathCorrectness())
    few = [row for row in loaded if row["answer"].isdigit()][:20]
    assert scores(reward, few, [row["completion"] for row in few]) == [1.0] * 20


# --- programs -------------------------------------------------------------------------------------


def test_mbpp_is_split_by_task_and_hides_its_tests(tmp_path: Path) -> None:
    ids = (1, 10, 11, 510, 511, 600, 601, 974)
    file = write(tmp_path / "mbpp.jsonl", [TASK | {"task_id": i} for i in ids])
    found = {
        split: [row["task_id"] for row in rows_of("mbpp", split, tmp_path)]
        for split in ("prompt", "test", "validation", "train")
    }
    assert list(found.values()) == [[1, 10], [11, 510], [511, 600], [601, 974]]
    row = rows_of("mbpp", "train", file)[0]
    assert row["completion"] == "def double(x):\n    return 2 * x"
    assert row["test_list"] == TASK["test_list"]
    assert [test in row["prompt"] for test in row["test_list"]] == [True, False, False]
    setup = TASK | {"test_setup_code": "x = 1\r\ny = 2"}
    row = rows_of("mbpp", "train", write(tmp_path / "setup.jsonl", [setup]))[0]
    assert row["prompt"].endswith("\nx = 1\ny = 2\nassert double(2) == 4")


def test_a_program_that_repeats_the_shown_test_scores_0(sandbox: Any, tmp_path: Path) -> None:
    (row,) = rows_of("mbpp", "train", write(tmp_path / "mbpp.jsonl", [TASK]))
    answers = [row["completion"], "def double(x):\n    return 4"]
    assert scores(sandbox, [row, row], answers) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("split", "rows"), [("train", 374), ("validation", 90), ("test", 500), ("prompt", 10)]
)
def test_mbpp_as_it_is(sandbox: Any, split: str, rows: int) -> None:
    loaded = rows_of("mbpp", split, shared("data/mbpp"))
    assert len(loaded) == len({row["task_id"] for row in loaded}) == rows
    assert not any(
        "\r" in text for row in loaded for text in (row["completion"], *row["test_list"])
    )
    few = loaded[:: max(1, rows // 6)]
    assert scores(sandbox, few, [row["completion"] for row in few]) == [1.0] * len(few)


def test_humaneval_from_either_file(tmp_path: Path) -> None:
    plain = write(tmp_path / "HumanEval.jsonl", [FUNCTION])
    packed = tmp_path / "packed" / "HumanEval.jsonl.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for path in (plain, tmp_path, packed, packed.parent):
        (row,) = rows_of("humaneval", "test", path)
        assert row == {
            "prompt": FUNCTION["prompt"],
            "completion": FUNCTION["canonical_solution"],
            "test": FUNCTION["test"],
            "entry_point": "double",
        }


def test_humaneval_as_it_is(sandbox: Any) -> None:
    loaded = rows_of("humaneval", "test", shared("data/humaneval"))
    assert len(loaded) == 164
    few = loaded[::27]
    assert scores(sandbox, few, [row["completion"] for row in few]) == [1.0] * len(few)


def test_every_data_set_has_one_name() -> None:
    assert list(DATASETS) == sorted(DATASETS)
