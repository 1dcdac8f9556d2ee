"""Overlap with an evaluation set: which rows share n successive words with it."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import Capture, complaint, output_of
from conftest import shared
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.files import read_file
from posttrain.data.prepare.convert import prepare
from posttrain.data.prepare.decontamination import MOST_ROWS, measure_overlap, read_ngrams
from posttrain.data.prepare.decontamination import shared as shared_ngrams
from posttrain.data.prepare.standard import Preparation

PROBLEM = "Tom has 3 boxes of 4 apples, and he eats 2. How many apples are left in the boxes?"


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def overlaps(tmp_path: Path, evaluation: list[Any], row: Any, n: int = 13) -> bool:
    ngrams = read_ngrams([write(tmp_path / "eval.jsonl", evaluation)], n)
    return next(shared_ngrams(row, ngrams), None) is not None


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": PROBLEM}, True),
        ({"prompt": f"A new story: {PROBLEM.upper().replace(',', ' ;')} Say it."}, True),
        ({"messages": [{"role": "user", "content": PROBLEM}]}, True),
        # 12 words alone are too few, 13 are enough
        ({"prompt": "Tom has 3 boxes of 4 apples, and he eats 2. How"}, False),
        ({"prompt": "Tom has 3 boxes of 4 apples, and he eats 2. How many"}, True),
        # words of two columns do not follow each other
        ({"prompt": PROBLEM[:40], "completion": PROBLEM[40:]}, False),
        ({"prompt": PROBLEM.replace("boxes", "crates").replace("eats", "buys")}, False),
        ({"prompt": None, "id": 7}, False),
    ],
)
def test_rows_by_hand(tmp_path: Path, row: Any, expected: bool) -> None:
    evaluation = [
        {"question": "Another one, of which nobody trains on any part of it at all."},
        {"question": PROBLEM, "answer": "10"},
    ]
    assert overlaps(tmp_path, evaluation, row) == expected


def test_a_short_text_counts_as_a_whole_from_8_words_on(tmp_path: Path) -> None:
    eight = "Oslo has been the capital since nineteen twenty-four"
    assert overlaps(tmp_path, [{"claim": eight[:-5]}], {"claim": f"It is said: {eight}!"})
    assert not overlaps(tmp_path, [{"claim": eight[:-5]}], {"claim": eight[5:]})
    with pytest.raises(ValueError, match="none of the 1 rows has a text of 8 words"):
        read_ngrams([write(tmp_path / "short.jsonl", [{"claim": "Oslo is the capital of Norway"}])])


def test_the_form_of_the_prompts_is_no_overlap(tmp_path: Path) -> None:
    form = "Let us think step by step and then output the final answer in a box of its own."
    rows = [{"prompt": f"{i} {form}"} for i in range(MOST_ROWS + 1)]
    assert not overlaps(tmp_path, rows, {"prompt": f"something else. {form}"})
    assert overlaps(tmp_path, rows[:-1], {"prompt": f"something else. {form}"})
    # nor is it a form where one row alone says it many times
    assert overlaps(tmp_path, [{"prompt": f"{form} " * (MOST_ROWS + 1)}], {"prompt": form})


words = st.lists(st.sampled_from("abc"), min_size=1, max_size=14)


@given(words, words, st.integers(1, 5))
def test_against_a_search_in_the_text(tmp_path_factory: Any, left: Any, right: Any, n: int) -> None:
    folder = tmp_path_factory.mktemp("overlap")
    length = min(n, len(right))
    pieces = [right[i : i + length] for i in range(len(right) - length + 1)]
    expected = length == n and any(f" {' '.join(p)} " in f" {' '.join(left)} " for p in pieces)
    if len(right) < n:  # shorter than every text that is looked for
        with pytest.raises(ValueError, match="none of the 1 rows has a text"):
            overlaps(folder, [{"text": " ".join(right)}], {}, n)
        return
    row = {"text": " ".join(left)}
    assert overlaps(folder, [{"text": " ".join(right)}], row, n) == expected


def test_the_report(tmp_path: Path, capsys: Capture) -> None:
    train = write(tmp_path / "train.jsonl", [{"prompt": "x"}, {"prompt": PROBLEM}] * 2)
    held_out = write(
        tmp_path / "eval.jsonl", [{"q": PROBLEM}, {"q": "short"}, {"q": PROBLEM[::-1]}]
    )
    text = output_of(capsys, "data", "overlap", train, held_out)
    assert "2 of 4 training rows (50.00%) share 13 successive words" in text
    assert "1 of 3 evaluation rows are affected (1 are too short to compare; 0 n-grams" in text
    assert f"{train}, line 2: tom has 3 boxes of 4 apples and he eats 2 how many" in text
    text = output_of(capsys, "data", "overlap", train, held_out, "--n", 5)
    assert "share 5 successive words" in text
    assert "--n: must be 1 or more" in complaint(
        capsys, "data", "overlap", train, held_out, "--n", 0
    )
    assert "no file matches" in complaint(capsys, "data", "overlap", train, tmp_path / "x.jsonl")


def test_prepare_drops_them_and_says_so(tmp_path: Path) -> None:
    rows = [{"prompt": text, "completion": "x"} for text in ("another one", PROBLEM)]
    held_out = write(tmp_path / "eval.jsonl", [{"question": PROBLEM}])
    config = Preparation(tmp_path / "out", val_split=0, decontaminate=str(held_out))
    done = prepare([str(write(tmp_path / "rows.jsonl", rows))], config)
    assert done.dropped == {f"overlap with {held_out}": 1}
    assert list(read_file(tmp_path / "out/train.parquet")) == rows[:1]


@pytest.mark.slow
def test_gsm8k_overlaps_with_itself_and_little_with_its_test_set() -> None:
    folder = shared("data/gsm8k")
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    itself = measure_overlap([test], [test])
    assert itself.num_overlapping >= 0.99 * itself.num_rows
    apart = measure_overlap([train], [test])
    assert apart.num_rows == 7_473
    assert apart.num_overlapping < 0.05 * apart.num_rows
