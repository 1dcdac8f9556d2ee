"""Rows as data sets write them: read as they are meant, or refused in one line."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from chat_templates import CHATML, tokenizer_with

from posttrain.data.config import DataConfig
from posttrain.data.forms import standard_form, standard_forms
from posttrain.data.kinds.completion import check, to_examples
from posttrain.data.kinds.pair import to_examples as to_pairs
from posttrain.data.kinds.steps import to_examples as to_steps
from posttrain.data.kinds.text import to_examples as to_texts
from posttrain.data.kinds.unpaired import to_examples as to_judged
from posttrain.data.lengths import LengthTable
from posttrain.data.load import load_rows
from posttrain.data.prepare.convert import prepare
from posttrain.data.prepare.standard import Preparation
from posttrain.data.render import make_renderer
from posttrain.data.templates import fill

Q, A, B = (
    {"role": r, "content": c} for r, c in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
)
CHAT = [Q, A]
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def texts(examples: list[Any]) -> list[str]:
    """The whole text of each sequence."""
    decode = make_renderer(tokenizer_with(CHATML)).tokenizer.decode
    return [decode(sequence.input_ids) for group in examples for sequence in group]


def trained(kind: Any, rows: list[Any], **options: Any) -> tuple[list[str], LengthTable]:
    it = make_renderer(tokenizer_with(CHATML))
    examples, table = kind(standard_forms(rows, "set"), it, "set", 999, "error", **options)
    return texts(examples), table


WHOLE = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT},
        {"messages": json.dumps(CHAT)},
        {"conversations": CHAT},
        {"conversations": SHAREGPT},
        {"conversations": json.dumps(SHAREGPT, indent=1)},
        {"conversations": SHAREGPT, "prompt": None, "text": None, "messages": None},
        {"messages": CHAT, "prompt": None, "completion": None},
        {"messages": None, "prompt": "q", "completion": "a"},
        {"messages": None, "prompt": json.dumps([Q]), "completion": json.dumps([A])},
    ],
)
def test_a_chat_is_read_however_it_is_written(row: dict[str, Any]) -> None:
    rows = standard_forms([row], "set")
    check(rows, "set")
    assert trained(to_examples, rows)[0] == [WHOLE]
    assert standard_form(rows[0]) is rows[0]


@pytest.mark.parametrize(
    "value",
    ["[1, 2]", "[", '[{"a": 1}]', '[{"role": "user"', "{'role': 'user'}", "[x]", "[{'a': 1}]", 3],
)
def test_other_texts_stay_what_they_are(value: Any) -> None:
    row = {"prompt": value, "completion": "a"}
    assert standard_form(row) is row


@pytest.mark.parametrize("column", ["messages", "prompt", "chosen", "conversations"])
def test_lists_in_the_notation_of_python_are_refused(column: str) -> None:
    """pandas writes them into CSV; json.loads() does not read them."""
    for value in (str(CHAT), "[{'content': 'q', 'role': 'user'}\n {'content': 'a'}]"):
        with pytest.raises(ValueError, match=rf"set, row 2: {column} is a list in Python's"):
            standard_forms([{}, {column: value}], "set")


def test_a_pair_in_json_text() -> None:
    row = {"prompt": "q", "chosen": json.dumps(CHAT), "rejected": json.dumps([Q, B])}
    found, table = trained(to_pairs, [row])
    assert found == [WHOLE, WHOLE.replace("\na<", "\nb<")]
    assert not table.notes


def test_equal_turns_written_in_two_ways_are_the_prompt() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "q"}]}, A, Q, B]
    row = {"chosen": parts, "rejected": [*CHAT, Q, A]}
    it = make_renderer(tokenizer_with(CHATML))
    (((chosen, _),), _) = to_pairs([row], it, "set", 999, "error")
    assert it.tokenizer.decode(chosen.input_ids[chosen.loss_mask]) == "b<|im_end|>"


@pytest.mark.parametrize("start", ["\n\nHuman: q", "Human: q", "\nHuman: q"])
def test_dialogues_with_and_without_their_first_line_ends(start: str) -> None:
    row = {side: f"{start}\n\nAssistant: {side[0]}" for side in ("chosen", "rejected")}
    found, _ = trained(to_pairs, [row])
    assert found == [WHOLE.replace("\na<", f"\n{answer}<") for answer in "cr"]


def test_a_question_that_is_not_mapped_is_not_dropped() -> None:
    """The common beginning of two answers would be taken for the prompt."""
    row = {"question": "Capital?", "chosen": "It is Oslo.", "rejected": "It is Rome."}
    with pytest.raises(ValueError, match=r"row 1: no column prompt, but question: .*data\.columns"):
        trained(to_pairs, [row])
    found, _ = trained(to_pairs, [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    assert found[0] == WHOLE


SYSTEM = {"role": "system", "content": "T"}
STEPS = {"prompt": "q", "completions": ["a"], "labels": [True], "tools": [{"name": "f"}]}


@pytest.mark.parametrize(
    ("kind", "row", "note"),
    [
        (to_pairs, {"prompt": "x", "chosen": CHAT, "rejected": [Q, B]}, "column prompt is left"),
        (to_examples, {"messages": [SYSTEM, *CHAT], "system": "S"}, "column system is left out"),
        (to_examples, {"prompt": " ", "completion": "a"}, "messages of the user have no text"),
        (to_steps, STEPS, "does not write tools"),
    ],
)
def test_what_a_row_has_and_no_token_comes_from_is_named(
    kind: Any, row: dict[str, Any], note: str
) -> None:
    options = {"separator": "\n"} if kind is to_steps else {}
    _, table = trained(kind, [row], **options)
    assert [noted.rows for text, noted in table.notes.items() if note in text] == [1]


def test_nulls_are_named_in_errors() -> None:
    with pytest.raises(ValueError, match=r"row 1: expected .*; null: rejected$"):
        trained(to_pairs, [{"prompt": "q", "chosen": "a", "rejected": None}])
    with pytest.raises(ValueError, match=r"row 1: expected .*; null: label$"):
        trained(
            to_judged, [{"prompt": "q", "completion": "a", "label": None}], with_unrelated=False
        )


def test_columns_of_alpaca() -> None:
    rows = [{"instruction": "q", "input": None, "output": "a"}]
    with pytest.raises(ValueError, match=r"Alpaca: set data\.prompt_template: instruction and"):
        trained(to_examples, rows)
    assert fill("instruction", rows[0], "row 1")["prompt"] == "q"
    assert fill("instruction", rows[0], "row 1")["input"] is None
    with pytest.raises(ValueError, match=r"row 1: .* needs a string in input; got 'nan'"):
        fill("instruction", rows[0] | {"input": math.nan}, "row 1")
    with pytest.raises(ValueError, match="needs a string in question; got 'None'"):
        fill("{question}", {"question": None}, "row 1")


def test_the_old_form_of_calls() -> None:
    call = {"name": "f", "arguments": "{}"}
    chat = [Q, {"role": "assistant", "content": None, "function_call": call}, Q, A]
    found, table = trained(to_examples, [{"messages": chat}])
    assert len(found) == 1
    assert "function_call is read as tool_calls" in table.notes
    assert any("of which the template writes nothing" in note for note in table.notes)


def test_images_beside_a_text_are_refused() -> None:
    with pytest.raises(ValueError, match="row 1: the column images is not empty"):
        trained(to_texts, [{"text": "a b", "images": ["x.png"]}])


def test_forms_in_files(tmp_path: Path) -> None:
    rows = [{"conversations": SHAREGPT, "messages": None}, {"messages": json.dumps(CHAT)}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    read = load_rows(DataConfig(path=str(tmp_path / "train.parquet")))
    assert trained(to_examples, read)[0] == [WHOLE] * 2


def test_prepare_reads_conversations(tmp_path: Path) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": f"q{k}"}, SHAREGPT[1]]} for k in range(30)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepared = prepare([str(tmp_path / "rows.jsonl")], Preparation(tmp_path / "out"))
    assert sum(prepared.kept.values()) == 30
    read = load_rows(DataConfig(path=str(tmp_path / "out")))
    assert {"from": "human", "value": "q0"} in [row["messages"][0] for row in read]
    assert trained(to_examples, read)[0][0].endswith("assistant\na<|im_end|>\n")
    prepare([str(tmp_path / "rows.jsonl")], Preparation(tmp_path / "verl", format="verl_sft"))
    (first, *_) = load_rows(DataConfig(path=str(tmp_path / "verl")))
    assert first["messages"][1] == A


def test_prepare_keeps_turns_that_are_a_call(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    rows = [{"messages": [Q, {"role": "assistant", "content": None, "tool_calls": [call]}]}]
    rows += [{"messages": [Q, {"role": "assistant", "content": ""}]}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepared = prepare([str(tmp_path / "rows.jsonl")], Preparation(tmp_path / "out", 0.0))
    assert prepared.kept == {"train": 1}
    assert prepared.dropped == {"have an empty prompt or answer": 1}
