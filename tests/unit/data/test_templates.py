"""Prompt templates: what fills them, and what is said where a column is missing."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import Capture, complaint, output_of, recipe

from posttrain.data.config import DataConfig
from posttrain.data.load import load_rows
from posttrain.data.templates import TEMPLATES, fields, fill


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_takes_what_its_example_has(name: str) -> None:
    template = TEMPLATES[name]
    assert set(fields(template.text)) == template.example.keys()
    prompt = fill(name, template.example, "here")["prompt"]
    assert all(value in prompt for value in template.example.values())
    assert not any(f"{{{field}}}" in prompt for field in fields(template.text))
    assert prompt == prompt.rstrip()


def test_a_prompt_by_hand() -> None:
    row = fill("math_cot", {"prompt": "1+1?", "answer": "2"}, "here")
    assert row == {
        "prompt": "1+1?\n\nThink step by step, and put the final answer in \\boxed{}.",
        "answer": "2",
    }


def test_braces_in_a_row_are_text() -> None:
    row = fill("claim", {"claim": "{label} {0} \\1 {claim}", "label": "x"}, "here")
    assert row["prompt"].endswith("Claim: {label} {0} \\1 {claim}")
    row = {"instruction": "What does {input} mean here?", "input": "print('{input}')"}
    assert fill("instruction", row, "here")["prompt"] == "\n\n".join(row.values())


def test_an_empty_field_leaves_no_empty_end() -> None:
    row = {"instruction": "Sing.", "input": ""}
    assert fill("instruction", row, "here")["prompt"] == "Sing."


def test_a_text_of_ones_own() -> None:
    assert fill("Q: {question}\nA:", {"question": 7}, "here")["prompt"] == "Q: 7\nA:"


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        (
            "claim",
            {"prompt": "a"},
            "row 1: the prompt template 'claim' needs the column claim; "
            "the row has prompt (map it with data.columns)",
        ),
        ("math_cot", {"prompt": [{"role": "user", "content": "a"}]}, "needs a string in prompt; g"),
        ("instruction", {"instruction": None, "input": "a"}, "a string in instruction; got 'None'"),
        (
            "math_cott",
            {"prompt": "a"},
            "'math_cott' is not a template and has no {field}; did you mean math_cot?",
        ),
        ("zzz", {"prompt": "a"}, "known: math_cot, code, chat"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, capsys: Capture, name: str, row: dict[str, Any], expected: str
) -> None:
    file = recipe(tmp_path, [row])
    text = complaint(capsys, "train", file, f"data.prompt_template={name}")
    assert expected in text
    assert not (tmp_path / "out").exists()


def test_a_row_is_filled_after_its_columns_are_renamed(tmp_path: Path) -> None:
    rows = [{"question": f"{i}+{i}?", "answer": str(2 * i)} for i in range(4)]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    keys: dict[str, Any] = {"columns": {"prompt": "question"}, "max_samples": 2}
    found = load_rows(DataConfig(path=str(tmp_path), prompt_template="{prompt} So:", **keys))
    assert found == [{"prompt": f"{i}+{i}? So:", "answer": str(2 * i)} for i in range(2)]


def test_the_rows_of_a_named_data_set_too() -> None:
    keys: dict[str, Any] = {"name": "word_problems", "options": {"num_rows": 2}}
    plain = load_rows(DataConfig(**keys))
    for row, before in zip(load_rows(DataConfig(prompt_template="chat", **keys)), plain):
        assert row == before | {"prompt": f"User: {before['prompt']}\n\nAssistant:"}


def test_they_are_listed_and_previewed(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    listed = output_of(capsys, "data", "templates")
    for name, template in TEMPLATES.items():
        assert f"{name}  ({', '.join(template.example)})" in listed
    keys = ["data.prompt_template=chat", "data.template=plain"]
    shown = output_of(capsys, "data", "preview", recipe(tmp_path), *keys)
    assert "User: 0+0" in shown
    assert "Assistant:[[" in shown
