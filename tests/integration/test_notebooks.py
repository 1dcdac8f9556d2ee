"""The notebooks in examples/notebooks/ run, and show what their text says."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import ROOT

import posttrain

FOLDER = ROOT / "examples" / "notebooks"
NAMES = ("first_hour", "grpo_own_reward", "preferences")

spec = importlib.util.spec_from_file_location("notebooks", ROOT / "scripts" / "notebooks.py")
assert spec is not None
assert spec.loader is not None
script: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def committed(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(notebook: Any) -> str:
    """All that a reader sees below the cells, as text."""
    texts = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            data = output.get("data", {})
            texts += [output.get("text", ""), *(str(value) for value in data.values())]
    return "\n".join(texts)


def run_all(name: str, folder: Path, then: str = "", **constants: int) -> str:
    """Run a notebook, its last cell `then`; return what it shows."""
    notebook = script.executed(FOLDER / f"{name}.ipynb", folder, constants, then)
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    stderr = "".join(output.text for output in outputs if output.get("name") == "stderr")
    allowed = "stopping after this step, with a checkpoint; Ctrl-C again stops at once"
    assert stderr.replace(allowed, "").strip() == ""
    return shown(notebook)


def test_there_is_a_test_for_each() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_clean_and_its_outputs_are_of_its_code(name: str) -> None:
    notebook = committed(name)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert notebook.metadata["code_hash"] == script.code_hash(notebook), (
        "its code changed: python scripts/notebooks.py"
    )
    before = json.dumps(notebook, sort_keys=True)
    assert json.dumps(script.clean(notebook), sort_keys=True) == before
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]


@pytest.mark.parametrize("name", NAMES)
def test_it_tells_nothing_of_the_machine_that_ran_it(name: str) -> None:
    text = (FOLDER / f"{name}.ipynb").read_text()
    assert len(text) < 150_000
    assert not re.search(r"(?<![\w.*])/(home|root|tmp|Users|work|var|mnt|opt|usr)/", text)
    assert socket.gethostname() not in text or len(socket.gethostname()) < 6
    assert "Warning" not in text


@pytest.mark.parametrize("name", NAMES)
def test_its_links_and_names_exist(name: str) -> None:
    notebook = committed(name)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#]+)", text)
    assert links
    assert [link for link in links if not (FOLDER / link).exists()] == []
    code = "\n".join(cell.source for cell in code_cells(notebook))
    used = set(re.findall(r"\bposttrain\.(\w+)\(", code))
    assert used <= set(posttrain.__all__)


@pytest.mark.slow
def test_one_in_short(tmp_path: Path) -> None:
    text = run_all("grpo_own_reward", tmp_path, SFT_STEPS=30, GRPO_STEPS=4)
    assert '<progress max="30" value="30"></progress> sft: step 30 of 30' in text
    assert "grpo: step 4 of 4" in text
    assert text.count("<svg") == 2
    assert re.search(r"reward: \S+ at step 1, \S+ at step 4", text)
    assert "95 % interval" in text
    assert text.count("p by exact McNemar") == 4, "two comparisons, each as text and as HTML"
    assert "1  '208 is larger.'\n0  '31 is larger.'\n0  '31 or 208.'" in text


@pytest.mark.slow
def test_the_first_hour_as_it_is(tmp_path: Path) -> None:
    then = """
losses, accuracies = list(run.column("loss").values()), list(run.column("eval_accuracy").values())
assert losses[-1] < losses[0] - 4
assert accuracies[-1] > accuracies[0] + 0.3
assert {sample["correct"] for sample in run.samples} == {True, False}
low, high = results["gsm8k"]["ci95"]
assert low > 0.3 and high < 1
assert resumed.column("loss") == whole.column("loss")
assert posttrain.compare(results, other)["gsm8k"].p_value < 0.01
"""
    text = run_all("first_hour", tmp_path, then)
    assert "unknown key trainer.batchsize: did you mean batch_size?" in text
    assert "\x1b[30;42m" in text, "the trained tokens are coloured"
    assert '<progress max="300" value="300"></progress> sft: step 300 of 300' in text
    assert "finished, step 300 of 300" in text
    assert re.search(r"stopped after step \d+ of 100, which is saved", text)
    assert "the same losses: True" in text
    assert (tmp_path / "both.html").is_file()


@pytest.mark.slow
def test_a_reward_is_hacked_and_then_guarded(tmp_path: Path) -> None:
    then = """
def mean(run, steps):
    values = list(run.column("reward").values())
    return sum(values[steps]) / len(values[steps])

for run in (contains, only):
    assert mean(run, slice(-10, None)) > mean(run, slice(10)) + 0.15, "the reward rises"
assert share_of_hedges(late) > share_of_hedges(early) + 0.1
assert share_of_hedges(late) > 0.7
start_is, hacked, guarded = (
    result["gsm8k"]["accuracy"] for result in (of_start, of_contains, of_only)
)
assert hacked < start_is / 2
assert guarded > start_is
assert posttrain.compare(of_start, of_only)["gsm8k"].p_value < 0.01
assert len(cheats) == 3
"""
    text = run_all("grpo_own_reward", tmp_path, then)
    assert "1  'The larger number is 208.'\n0  '31 is larger.'\n0  ''" in text
    assert "0  '31 or 208.'" in text


@pytest.mark.slow
def test_preferences_are_learnt_and_their_price_is_shown(tmp_path: Path) -> None:
    then = """
def last(run, name):
    values = list(run.column(name).values())
    return sum(values[-10:]) / 10

for run in (dpo, simpo, dpo_sft, simpo_sft):
    assert last(run, "rewards/margins") > run.column("rewards/margins")[1]
    assert last(run, "rewards/accuracies") > 0.6
assert last(dpo, "logps/chosen") < dpo.column("logps/chosen")[1]
assert last(dpo_sft, "logps/chosen") > last(dpo, "logps/chosen")
before, after = all_points(start), all_points(dpo)
assert sum(b > a for a, b in zip(before, after)) > sum(b < a for a, b in zip(before, after))
assert after.count(2) > before.count(2), "the style is learnt"
assert of_dpo["gsm8k"]["accuracy"] < of_start["gsm8k"]["accuracy"]
for result in (of_dpo_sft, of_simpo_sft):
    assert posttrain.compare(of_start, result)["gsm8k"].p_value < 0.05
    assert result["gsm8k"]["accuracy"] > of_start["gsm8k"]["accuracy"]
"""
    text = run_all("preferences", tmp_path, then)
    assert "SimPO + SFT" in text


def test_the_script_refuses_unknown_names() -> None:
    with pytest.raises(ValueError, match="no constant STEP; there are STEPS"):
        script.with_constants("STEPS = 300  # fewer", {"STEP": 3})
    assert script.with_constants("A = 1\nB = 2  # b", {"B": 3}) == "A = 1\nB = 3"
    with pytest.raises(SystemExit, match="no notebook last_hour; there are first_hour, "):
        script.main(["last_hour"])
