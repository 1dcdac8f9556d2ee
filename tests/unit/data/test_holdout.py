"""`eval.split`: rows held out of the training rows, with no question on both sides."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from posttrain.algorithms import ALGORITHMS
from posttrain.data.holdout import hold_out, is_held_out, question_of
from posttrain.data.rows import Row
from posttrain.runs.config import parse_config
from posttrain.runs.plan import plan

Rows = list[Row]


def split(rows: Rows, share: float = 0.3, seed: int = 0, column: str | None = None) -> Any:
    kept, held = hold_out([("rows", rows)], share, seed, column, lambda row: row)
    return kept[0], held[0]


def rows_of(n: int) -> Rows:
    return [{"prompt": f"question {i}", "completion": str(i)} for i in range(n)]


def test_the_share_is_about_what_was_asked_for() -> None:
    kept, held = split(rows_of(4000), 0.1)
    assert len(kept) + len(held) == 4000
    assert 340 < len(held) < 460


def test_neither_order_nor_other_rows_matter() -> None:
    rows = rows_of(300)
    _, held = split(rows)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert {r["prompt"] for r in split(shuffled)[1]} == {r["prompt"] for r in held}
    some = rows[:100]
    assert split(some)[1] == [row for row in held if row in some]
    assert split(rows, seed=1)[1] != held


def test_the_kept_and_the_held_rows_stay_in_their_order() -> None:
    rows = rows_of(200)
    kept, held = split(rows)
    assert kept == [row for row in rows if row not in held]
    assert held == [row for row in rows if row not in kept]


def test_equal_questions_are_equal_whatever_their_case_and_spaces() -> None:
    asked = [{"prompt": text} for text in ("How  many?", "how many?", " HOW MANY?\n")]
    assert len({question_of(row) for row in asked}) == 1
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]
    answered = [*turns, {"role": "assistant", "content": "3"}, {"role": "user", "content": "Why?"}]
    assert question_of({"messages": answered}) == question_of({"prompt": "How many?"})


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), min_size=12, max_size=60),
    st.integers(0, 9),
)
def test_no_question_and_no_group_is_on_both_sides(pairs: list[tuple[int, int]], seed: int) -> None:
    rows: Rows = [{"prompt": f"q{q}", "document": d} for q, d in pairs]
    try:
        kept, held = split(rows, 0.4, seed, "document")
    except ValueError:  # all on one side: tested below
        return
    for column in ("prompt", "document"):
        assert not {r[column] for r in kept} & {r[column] for r in held}
    backwards = split(rows[::-1], 0.4, seed, "document")
    assert backwards == (kept[::-1], held[::-1])


def test_it_is_the_share_of_data_prepare(tmp_path: Path, capfd: Any) -> None:
    import pyarrow.parquet
    from command import output_of

    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_of(400)))
    output_of(
        capfd,
        "data",
        "prepare",
        file,
        "--output-dir",
        tmp_path / "out",
        "--val-split",
        0.2,
        "--seed",
        7,
    )
    validation = pyarrow.parquet.read_table(tmp_path / "out/validation.parquet").to_pylist()
    _, held = split(rows_of(400), 0.2, 7)
    assert [row["prompt"] for row in validation] == [row["prompt"] for row in held]


def test_a_share_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"eval\.split=0\.01 leaves none of the 2 rows for the evaluation"
    ):
        split(rows_of(2), 0.01)
    alone = [{"prompt": next(f"{i}" for i in range(99) if is_held_out(f"{i}", 0.5, 0))}]
    with pytest.raises(ValueError, match="leaves none of the 1 rows to train on"):
        split(alone, 0.5)


def test_a_row_without_the_column_is_named() -> None:
    rows = [*rows_of(3), {"prompt": "x", "document": None}]
    with pytest.raises(ValueError, match=r"rows, row 1: no value in 'document' \(eval.split_by\)"):
        split(rows, column="document")


def held_out_run(tmp_path: Path, method: str, **evaluation: Any) -> Any:
    tree = tiny.run_config(tmp_path, method, eval_steps=3)
    tree["eval"] = {"split": 0.3, "max_samples": None, **evaluation}
    return plan(parse_config(tree, "test"))


@pytest.mark.parametrize(
    "method", ["pretrain", "sft", "dpo", "kto", "process_reward_model", "classification"]
)
def test_every_kind_of_row_can_be_held_out(tmp_path: Path, method: str) -> None:
    run = held_out_run(tmp_path, method)

    def texts(examples: Any) -> set[tuple[int, ...]]:
        return {tuple(s.input_ids.tolist()) for example in examples for s in example[:1]}

    trained, held = texts(run.data.examples), texts(run.data.eval_examples)
    assert trained
    assert held
    assert not trained & held


def test_prompts_are_held_out_of_reinforcement_learning(tmp_path: Path) -> None:
    run = held_out_run(tmp_path, "grpo")
    trained = {p.row["prompt"] for p in run.data.prompts}
    held = {p.row["prompt"] for p in run.data.eval_prompts}
    assert trained
    assert held
    assert not trained & held


def test_of_a_mixture_each_part_gives_its_share(tmp_path: Path) -> None:
    tree = tiny.run_config(tmp_path, eval_steps=3)
    files = []
    for name, n in (("a", 30), ("b", 60)):
        files.append(tmp_path / f"{name}.jsonl")
        rows = [{"prompt": f"{name} {i}", "completion": "x"} for i in range(n)]
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree["data"] = [{"path": str(file)} for file in files]
    tree["eval"] = {"split": 0.5, "max_samples": 12}
    run = plan(parse_config(tree, "test"))
    assert len(run.data.eval_examples) == 12
    assert len(run.data.examples) < 90


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"split": 0.1, "data": {"path": "x"}}, "give eval.data or eval.split, not both"),
        ({"split": 1}, "eval.split: expected a split's name or a share above 0 and below 1, got 1"),
        ({"split": 0.0}, "a share above 0 and below 1, got 0.0"),
        ({"split": True}, "a share above 0 and below 1, got True"),
        ({"split": "test", "split_by": "x"}, "eval.split_by needs a share in eval.split"),
        ({"split_by": "x"}, "eval.split_by needs a share in eval.split"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, section: dict[str, Any], message: str
) -> None:
    tree = tiny.run_config(tmp_path, eval_steps=3) | {"eval": section}
    with pytest.raises(ValueError, match=message):
        parse_config(tree, "test")


def test_a_name_is_a_split_of_the_training_datas_own_source(tmp_path: Path) -> None:
    for name in ("train", "dev"):
        rows = [{"prompt": f"{name} {i}", "completion": "x"} for i in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    tree = tiny.run_config(tmp_path, eval_steps=3) | {"data": {"path": str(tmp_path)}}
    run = plan(parse_config(tree | {"eval": {"split": "dev"}}, "test"))
    texts = [run.models.tokenizer.decode(s.input_ids) for (s,) in run.data.eval_examples]
    assert len(texts) == 8
    assert all("dev" in text for text in texts)
    with pytest.raises(ValueError, match=r"no file for split 'test'.*set eval.split to another na"):
        plan(parse_config(tree | {"eval": {}}, "test"))


def test_an_error_names_the_section_that_it_is_about(tmp_path: Path) -> None:
    tree = tiny.run_config(tmp_path, eval_steps=3)
    gone = tree | {"eval": {"data": {"name": "gsm8k", "path": "/gone"}}}
    with pytest.raises(ValueError, match=r"^eval\.data\.path: /gone does not exist"):
        plan(parse_config(gone, "test"))
    wrong = tree | {"eval": {"data": {"name": "word_problems", "options": {"num_row": 3}}}}
    with pytest.raises(ValueError, match=r"^eval\.data\.options: word_problems has no option"):
        plan(parse_config(wrong, "test"))


@pytest.mark.parametrize("method", list(ALGORITHMS))
def test_a_share_of_rows_whose_columns_are_not_mapped(method: str, tmp_path: Path) -> None:
    tree = tiny.run_config(tmp_path, method, eval_steps=3)
    file = tmp_path / "rows.jsonl"
    row = {"instruction": "1 + 1?", "output": "2"}
    file.write_text("".join(f"{json.dumps(row)}\n" for _ in range(20)))
    tree |= {"data": {"path": str(file)}, "eval": {"split": 0.3}}
    pattern = (
        r"rows.jsonl.*, row 1: .*expected .*; got instruction, output \((map them|Alpaca: set) "
    )
    with pytest.raises(ValueError, match=pattern):
        plan(parse_config(tree, "test"))
