"""What was written is what is meant: numbers as names, colons in texts, ~ and ${VAR} in paths."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from posttrain.common.files import expanded
from posttrain.config.base import keys
from posttrain.config.yaml_values import parse_value
from posttrain.runs.config import Config, load_config, parse_config, save_config
from posttrain.runs.pipeline import PipelineConfig
from posttrain.runs.synthesize import MakingConfig

TREE: dict[str, Any] = {
    "model": {"name": "m"},
    "data": {"path": "rows.jsonl"},
    "trainer": {"type": "sft", "max_steps": 1},
}


def recipe(folder: Path, trainer: str = "", data: str = "") -> Path:
    file = folder / "run.yaml"
    file.write_text(
        f"model: {{name: m}}\ndata:\n  path: rows.jsonl\n{data}"
        f"trainer:\n  type: sft\n  max_steps: 1\n{trainer}"
    )
    return file


@pytest.mark.parametrize(
    "name", ["007", "7", "2026-11-29", "1.10", "1e3", "12:30", "0x1F", "1_000", "+5", ".5", "2026"]
)
def test_a_run_name_is_the_text_that_was_written(tmp_path: Path, name: str) -> None:
    in_file = load_config(recipe(tmp_path, f"  run_name: {name}\n"))
    as_override = load_config(recipe(tmp_path), [f"trainer.run_name={name}"])
    assert in_file.trainer.run_name == as_override.trainer.run_name == name
    save_config(in_file, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == in_file


@pytest.mark.parametrize(
    "text",
    [
        "Answer: yes",
        "a: b: c",
        "Q: {question}\nA:",
        "{question}",
        "{question} and: {answer}",
        "Use #1 only",
        "# a heading",
        "two\nlines",
        "*.jsonl",
        "&x",
        "!important",
        "%d",
        "@home",
        "- be brief",
        "> quoted",
        "| piped",
        "http://localhost:8000/v1",
        "C:\\models",
        "key=value",
    ],
)
def test_an_override_of_a_text_is_the_text_as_it_stands(tmp_path: Path, text: str) -> None:
    config = load_config(recipe(tmp_path), [f"data.system_prompt={text}"])
    assert config.mixture[0].system_prompt == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5.0e-4", 0.0005),
        ("1_000", 1000),
        ("-3", -3),
        ("0", 0),
        (".5", 0.5),
        ("1.", 1.0),
        ("true", True),
        ("off", False),
        ("null", None),
        ("", None),
        ("[1, 2]", [1, 2]),
        ("{a: 1}", {"a": 1}),
        ("a: 1", {"a": 1}),
        ("'7'", "7"),
        ('"a: b"', "a: b"),
        ("plain words", "plain words"),
    ],
)
def test_other_values_are_yaml(text: str, value: Any) -> None:
    result = parse_value(f"key={text}", text)
    assert result == value
    assert type(value) is type(result) or isinstance(result, type(value))
    assert yaml.safe_load(yaml.safe_dump({"v": result if text != "a: 1" else 1}))


@pytest.mark.parametrize("text", ["'open", '"open', "[1, 2", "{a: 1"])
def test_a_value_that_is_begun_and_not_closed(text: str) -> None:
    with pytest.raises(ValueError, match="the value is not valid YAML"):
        parse_value(f"key={text}", text)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers())
def test_every_number_keeps_its_value(number: float) -> None:
    parsed = parse_value("", repr(number))
    assert parsed == number
    assert math.isclose(float(yaml.safe_load(yaml.safe_dump(parsed))), number, rel_tol=1e-15)


PATHS = (
    "model.name",
    "data.path",
    "trainer.output_dir",
    "trainer.resume_from_checkpoint",
    "reference.name",
    "eval.data.path",
    "rollout.adapter_dir",
)


@pytest.mark.parametrize("written", ["~/x", "$DIR/x", "${DIR}/x"])
@pytest.mark.parametrize("key", PATHS)
def test_every_path_is_expanded(monkeypatch: Any, tmp_path: Path, key: str, written: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DIR", str(tmp_path))
    tree = {name: dict(section) for name, section in TREE.items()}
    if key.startswith("reference"):
        tree["trainer"]["type"] = "dpo"
    if key.startswith("rollout"):
        tree["trainer"]["type"], tree["rollout"] = "grpo", {"engine": "server"}
        tree["rollout"]["servers"] = ["http://x"]
        tree["reward"] = {"type": "custom", "path": written}
        tree["model"]["use_lora"] = True
    if key.startswith("eval"):
        tree["trainer"]["eval_steps"] = 1
    node = tree
    *sections, last = key.split(".")
    for section in sections:
        node = node.setdefault(section, {})
    node[last] = written
    value: Any = parse_config(tree, "run.yaml")
    for name in key.split("."):
        value = getattr(value, name)
    assert value == f"{tmp_path}/x"
    node[last] = "$NOT_SET/x"
    with pytest.raises(ValueError, match=rf"{key}: \$NOT_SET/x: the environment variable NOT_SET"):
        parse_config(tree, "run.yaml")


def test_no_key_that_names_a_path_is_forgotten() -> None:
    """By its name: what holds a folder or file is expanded."""
    named = ("path", "output_dir", "adapter_dir", "resume_from_checkpoint", "recipe")
    for root in (Config, MakingConfig, PipelineConfig):
        for key in keys(root):
            if key.path.rpartition(".")[2] in named:
                marks = str(key.info) + str(key.info.annotation)
                assert "expanded_or_error" in marks or "_paths" in marks, key.path


def test_expansion(monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("A_B", "v")
    assert expanded("~") == "/home/me"
    assert expanded("~/a/$A_B/${A_B}x") == "/home/me/a/v/vx"
    assert expanded("a~b/$/5$") == "a~b/$/5$"
    for path, problem in {
        "~nobody_here/x": "~nobody_here is no user's home",
        "${NOPE}/x": "the environment variable NOPE is not set",
    }.items():
        with pytest.raises(ValueError, match=problem):
            expanded(path)
