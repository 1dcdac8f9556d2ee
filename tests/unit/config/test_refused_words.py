"""Words of a recipe that would be taken for something else: refused, with the line and the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.common.files import expanded
from posttrain.runs.config import load_config

RECIPE = """model: {name: m}
data: {path: rows.jsonl}
trainer:
  type: sft
  max_steps: 1
"""


def refusal(folder: Path, text: str, *overrides: str) -> str:
    file = folder / "run.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r".+") as caught:
        load_config(file, list(overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("${RUNS:-runs}/x", "only ${NAME} is replaced"),
        ("${oc.env:HOME}/x", "only ${NAME} is replaced"),
        ("out/${trainer.seed}", "only ${NAME} is replaced"),
        ("s3://bucket/runs", "an address, not a path"),
        ("https://example.org/m", "an address, not a path"),
        ("file:///tmp/x", "write the path without file://"),
        ("C:\\runs", "a path of Windows"),
        ("a/~/b", "~ is a home folder only at the beginning"),
        ("$EMPTY_ONE/x", "the environment variable EMPTY_ONE is empty"),
    ],
)
def test_what_is_no_path_of_this_machine(
    path: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run creates a folder named ${..., s3: or ~, nor one at the root for an empty variable."""
    monkeypatch.setenv("EMPTY_ONE", "")
    with pytest.raises(ValueError, match=r".+") as caught:
        expanded(path)
    assert reason in str(caught.value)


@pytest.mark.parametrize("path", ["a~b/c", "~a~", "cost$5", "a:b/c", "x/{y}", "owner/name", "%X%"])
def test_what_is_a_path(path: str) -> None:
    assert expanded(path if path[0] != "~" else f"./{path}").removeprefix("./") == path


@pytest.mark.parametrize("key", ["seed", "learning_rate", "batch_size", "warmup", "max_grad_norm"])
@pytest.mark.parametrize("word", ["true", "yes", "off"])
def test_a_switch_is_no_number(tmp_path: Path, key: str, word: str) -> None:
    """`learning_rate: yes` is not 1."""
    text = refusal(tmp_path, f"{RECIPE}  {key}: {word}\n")
    assert f"trainer.{key}: " in text
    assert "(got 'true')" in text or "(got 'false')" in text


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan", "1e999"])
def test_a_number_is_finite(tmp_path: Path, number: str) -> None:
    assert "trainer.weight_decay: " in refusal(tmp_path, RECIPE, f"trainer.weight_decay={number}")


def test_a_seed_that_torch_cannot_take(tmp_path: Path) -> None:
    assert "trainer.seed: " in refusal(tmp_path, RECIPE, "trainer.seed=99999999999999999999")


@pytest.mark.parametrize("name", ["a/b", "../x", "/abs", "..", ".", "x ", "~", "~me"])
def test_a_run_name_is_no_path(tmp_path: Path, name: str) -> None:
    """A run outside of trainer.output_dir would not be found by `latest`."""
    assert "is a name, not a path" in refusal(tmp_path, f"{RECIPE}  run_name: '{name}'\n")


@pytest.mark.parametrize("name", ["$HOME", "${X}", '"a\\nb"', "x" * 201])
def test_run_names_that_no_folder_should_have(tmp_path: Path, name: str) -> None:
    assert "trainer.run_name: " in refusal(tmp_path, f"{RECIPE}  run_name: {name}\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{RECIPE}eval:\n\tpath: x\n", "line 7: not valid YAML: "),
        (f"{RECIPE}eval:\n\tpath: x\n", "; indent with spaces, not tabs"),
        (f"{RECIPE}---\n{RECIPE}", "line 6: not valid YAML: expected a single document"),
        (f"{RECIPE}  seed:1\n", "; a key needs a colon and a space before its value"),
        ("model\n  name: a\n", "; a colon is missing in the line before"),
        ("model:\n  name: a\n dtype: float32\n", "; the keys of a section must be indented alike"),
        ("model: {name: a\n", "; a bracket is not closed"),
        ("model: {name: !env X}\n", "; tags are not read"),
        (f"{RECIPE}trainer: {{}}\n", "line 1: not valid YAML: duplicate key trainer"),
    ],
)
def test_what_is_no_yaml(tmp_path: Path, text: str, expected: str) -> None:
    said = refusal(tmp_path, text)
    assert expected in said
    assert "<unicode string>" not in said


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (RECIPE.replace("{name: m}", "m"), "model"),
        (RECIPE.replace("{path: rows.jsonl}", "rows.jsonl"), "data"),
        (RECIPE.replace("{path: rows.jsonl}", "null"), "data"),
        (RECIPE.replace("{name: m}", "{name: m, lora: 8, use_lora: true}"), "model.lora"),
    ],
)
def test_a_value_where_a_section_belongs(tmp_path: Path, text: str, key: str) -> None:
    assert f"{key}: expected a section with keys (got " in refusal(tmp_path, text)
