"""Several models from one recipe: their list, and the runs that are or are not trained again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import SCRATCH, Capture, command, complaint, output_of, recipe, state
from measured import repeatable

from posttrain.cli import experiments
from posttrain.common import distributed
from posttrain.common.interrupt import Interrupted
from posttrain.runs.config import Config, save_config
from posttrain.runs.series import one
from posttrain.runs.series.jobs import environment, error_line
from posttrain.runs.series.members import labelled_trees, models_of
from posttrain.runs.series.state import read_state, training

PRETEND = Path(__file__).parents[2] / "helpers/pretend_training.py"
MODELS: list[dict[str, Any]] = [
    {"label": "small", "scratch": SCRATCH},
    {"label": "other", "name": "org/other"},
    {"label": "large", "scratch": SCRATCH | {"hidden_size": 64}},
]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("POSTTRAIN_TRACEBACK", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(experiments, "command", pretend)


def pretend(config: Path, run_dir: Path) -> list[str]:
    return [sys.executable, str(PRETEND), str(config), str(run_dir)]


def series_recipe(folder: Path, models: Any = MODELS, **trainer: Any) -> Path:
    file = recipe(folder, name="three.yaml", models=models)
    tree = yaml.safe_load(file.read_text())
    del tree["model"]
    tree["trainer"] |= {"max_steps": 6, "save_steps": 2, "eval_steps": 3, **trainer}
    tree["eval"] = {"data": tree["data"]}
    file.write_text(yaml.safe_dump(tree))
    return file


def starts(folder: Path) -> list[list[str]]:
    """Series, label and first step of each process that was started."""
    file = folder / "out/starts.txt"
    return [x.split()[:3] for x in file.read_text().splitlines()] if file.exists() else []


def fault(folder: Path, **faults: str) -> None:
    (folder / "out").mkdir(exist_ok=True)
    (folder / "out/faults.json").write_text(json.dumps(faults))


def results(folder: Path, name: str = "three") -> dict[str, Any]:
    content = json.loads((folder / "out" / name / "results.json").read_text())
    return {run["label"]: run for run in content["runs"]}


def test_each_model_is_an_ordinary_run_of_the_recipe(tmp_path: Path) -> None:
    members = models_of(yaml.safe_load(series_recipe(tmp_path).read_text()), "three.yaml")
    assert [member.label for member in members] == ["small", "other", "large"]
    for member in members:
        assert member.config.trainer.run_name == member.label
        assert member.config.trainer.output_dir == str(tmp_path / "out/three")
        assert member.config.trainer.max_steps == 6
    assert members[1].config.model.name == "org/other"
    assert members[2].config.model.scratch is not None
    assert members[2].config.model.scratch.hidden_size == 64


def test_the_label_is_the_last_part_of_the_name_by_default() -> None:
    models = [
        "org/A-1.5B",
        {"name": "results/sft_1/"},
        {"scratch": {}},
        {"name": "x y", "label": 7},
    ]
    tree = {"models": models, "data": {}}
    labels = [label for label, _ in labelled_trees(tree, "r")]
    assert labels == ["A-1.5B", "sft_1", "scratch", "7"]
    assert tree["models"] is models
    assert models[3] == {"name": "x y", "label": 7}, "the recipe's tree was changed"


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ([], "models: expected a list of model sections"),
        ("org/a", "models: expected a list of model sections"),
        ({"name": "org/a"}, "models: expected a list of model sections"),
        (None, "models: expected a list of model sections"),
        ([3], "models.0: expected a model section with keys, got 3"),
        (["a", None], "models.1: expected a model section with keys, got None"),
        (["x/a", "y/a"], "models.0, models.1 are all labelled a: give each a label"),
        ([{"name": "a", "scratch": {}}], "to name the run, write label: a"),
        (
            [{"name": "small", "huggingface_id": "org/x"}],
            "write name: org/x instead of huggingface_id, since name is the model's weights, and "
            "label: small",
        ),
        ([{"name": "a", "label": "b/c"}], "models.0: label is a name, not a path"),
        ([{"name": "a", "label": ""}], "models.0: label: expected a name, got ''"),
        ([{"name": "a", "label": True}], "models.0: label: expected a name, got True"),
        ([{"name": "a", "label": "x" * 300}], "has more than 200 bytes"),
        ([{"nam": "a"}], "models.0 (scratch): unknown key model.nam: did you mean name?"),
        ([{"label": "a"}], "models.0 (a): give either model.name or model.scratch"),
        ([{"name": "a", "dtype": "int"}], "models.0 (a): model.dtype"),
        ([{"name": "a"}, {"name": "b", "trainer": {}}], "models.1 (b)"),
    ],
)
def test_a_wrong_list_is_one_line(
    tmp_path: Path, capsys: Capture, models: Any, expected: str
) -> None:
    file = series_recipe(tmp_path, models)
    before = state(tmp_path)
    assert expected in complaint(capsys, "train", file)
    assert expected in complaint(capsys, "train", file, "--dry-run")
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["model.device=cpu"], "give either model or models"),
        (["trainer.sed=1"], "unknown key trainer.sed: did you mean seed?"),
        (["models.7.device=cpu"], "one of the 3 items of the list"),
        (["models.0.devic=cpu"], "models.0 (small): unknown key model.devic"),
        (["trainer.resume_from_checkpoint=latest"], "remove trainer.resume_from_checkpoint"),
        (["--model-index", "3"], "expected 0 to 2, got 3; the models are 0 small, 1 other, 2 larg"),
        (["--model-index", "-1"], "expected 0 to 2, got -1"),
        (["--model", "smal"], "--model: no model is labelled smal; did you mean small?"),
        (["--model", "small", "--model-index", "0"], "give either the index of a model or its la"),
    ],
)
def test_a_wrong_call_is_one_line(
    tmp_path: Path, capsys: Capture, arguments: list[str], expected: str
) -> None:
    file = series_recipe(tmp_path)
    assert expected in complaint(capsys, "train", file, *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [["--model", "x"], ["--model-index", "0"], ["--retrain"]])
def test_one_model_is_not_chosen_from_a_list(
    tmp_path: Path, capsys: Capture, option: list[str]
) -> None:
    assert "has one model, not a list" in complaint(capsys, "train", recipe(tmp_path), *option)


def test_a_failed_run_does_not_lose_the_others(tmp_path: Path, capfd: Capture) -> None:
    file = series_recipe(tmp_path)
    fault(tmp_path, other="error")
    assert command("train", file) == 1
    out = capfd.readouterr().out
    assert "other failed: model.name: no such model" in out
    found = results(tmp_path)
    assert [run["state"] for run in found.values()] == ["finished", "failed", "finished"]
    assert found["small"]["metrics"]["eval_loss"] == pytest.approx(2 - 0.02 + 1 / 6 + 0.5)
    assert found["other"]["error"] == "model.name: no such model"
    assert found["other"]["run"] is None, "an empty run directory was left"
    assert found["large"]["memory"] > 2**20
    page = (tmp_path / "out/three/report.html").read_text()
    assert "model.name: no such model" in page
    assert '"name":"small"' in page
    assert '"name":"large"' in page

    # a second call trains only the failed one
    fault(tmp_path)
    assert command("train", file) == 0
    assert [label for _, label, _ in starts(tmp_path)] == ["small", "other", "large", "other"]
    assert {run["state"] for run in results(tmp_path).values()} == {"finished"}
    assert command("train", file) == 0
    assert len(starts(tmp_path)) == 4


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("traceback", "RuntimeError: something in C"),
        ("silent", "exit code 3, without a word"),
        ("kill", "GiB: the machine may have run out of memory"),
        ("abort", "ended by SIGABRT"),
        ("once", "the disk is full"),
    ],
)
def test_why_a_run_failed_is_one_line_and_it_resumes_from_its_checkpoint(
    tmp_path: Path, kind: str, expected: str
) -> None:
    file = series_recipe(tmp_path, MODELS[:1])
    fault(tmp_path, small=kind)
    assert command("train", file) == 1
    error = results(tmp_path)["small"]["error"]
    assert expected in error
    assert "\n" not in error
    fault(tmp_path)
    assert command("train", file) == 0
    assert starts(tmp_path)[-1] == ["three", "small", "0" if kind == "silent" else "2"]
    (run,) = (tmp_path / "out/three").glob("small_*")
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_no_words_and_long_words_of_a_failed_process() -> None:
    assert error_line(deque(), 7, None) == "exit code 7, without a word"
    assert error_line(deque(["error: a", "  ", "later"]), 2, None) == "a"
    assert error_line(deque(["Traceback", "KeyError: 1", ""]), 1, None) == "KeyError: 1"
    assert error_line(deque(["x" * 1000]), 1, None).endswith(" ...")
    assert error_line(deque(), -11, 2**31) == "ended by SIGSEGV when it had used up to 2.0 GiB"


def test_a_run_without_checkpoint_begins_again_in_one_folder(tmp_path: Path) -> None:
    file = series_recipe(tmp_path, MODELS[:1], save_steps=4)
    fault(tmp_path, small="traceback")
    assert command("train", file) == 1
    fault(tmp_path)
    assert command("train", file) == 0
    assert starts(tmp_path) == [["three", "small", "0"]] * 2
    assert len(list((tmp_path / "out/three").glob("small_*"))) == 1


def test_runs_of_another_config_are_refused_by_name(tmp_path: Path, capsys: Capture) -> None:
    file = series_recipe(tmp_path)
    assert command("train", file) == 0
    said = complaint(capsys, "train", file, "trainer.learning_rate=1e-3")
    assert "--retrain: needed to train runs of" in said
    assert "small (trainer.learning_rate was 2e-05, now 0.001)" in said
    said = complaint(capsys, "train", file, "models.2.scratch.hidden_size=128")
    assert "large (model.scratch.hidden_size was 64, now 128)" in said
    assert "small" not in said.replace(str(tmp_path), "")
    assert len(starts(tmp_path)) == 3

    # keys without effect on the numbers may change
    assert command("train", file, "trainer.logging_steps=3", "trainer.keep_checkpoints=9") == 0
    assert len(starts(tmp_path)) == 3

    assert command("train", file, "models.2.scratch.hidden_size=128", "--retrain") == 0
    assert starts(tmp_path)[3:] == [["three", "large", "0"]]
    assert len(list((tmp_path / "out/three").glob("large_*"))) == 2, "the old run was deleted"
    assert command("train", file, "models.2.scratch.hidden_size=128") == 0
    assert len(starts(tmp_path)) == 4


def test_runs_of_other_rows_are_refused_by_name(tmp_path: Path, capsys: Capture) -> None:
    file = series_recipe(tmp_path, MODELS[:1])
    assert command("train", file) == 0
    rows = tmp_path / "rows.jsonl"
    before = rows.read_text()
    rows.write_text(before.replace("#### 2", "#### 3"))
    assert f"small (the file {rows} changed)" in complaint(capsys, "train", file)
    rows.write_text(before)
    assert command("train", file) == 0
    assert len(starts(tmp_path)) == 1


def test_a_failed_run_without_checkpoint_takes_a_new_config(tmp_path: Path) -> None:
    file = series_recipe(tmp_path)
    fault(tmp_path, other="error")
    assert command("train", file) == 1
    fault(tmp_path)
    assert command("train", file, "models.1.name=org/corrected") == 0
    assert [label for _, label, _ in starts(tmp_path)] == ["small", "other", "large", "other"]


def test_an_interrupted_config_that_changed_is_refused_too(tmp_path: Path, capsys: Capture) -> None:
    file = series_recipe(tmp_path, MODELS[:1])
    fault(tmp_path, small="traceback")
    assert command("train", file) == 1
    assert "small (trainer.seed was 0, now 1)" in complaint(capsys, "train", file, "trainer.seed=1")


def test_a_run_that_was_deleted_is_trained_again(tmp_path: Path) -> None:
    file = series_recipe(tmp_path, MODELS[:1])
    assert command("train", file) == 0
    (run,) = (tmp_path / "out/three").glob("small_*")
    shutil.rmtree(run)
    assert command("train", file) == 0
    assert len(starts(tmp_path)) == 2


def test_the_folder_may_move(tmp_path: Path) -> None:
    file = series_recipe(tmp_path, MODELS[:1])
    assert command("train", file) == 0
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert command("train", file, "--output-dir", tmp_path / "elsewhere") == 0
    assert len((tmp_path / "elsewhere/starts.txt").read_text().splitlines()) == 1


def test_the_series_is_named_by_run_name(tmp_path: Path) -> None:
    assert command("train", series_recipe(tmp_path, MODELS[:1], run_name="mine")) == 0
    assert results(tmp_path, "mine")["small"]["state"] == "finished"


def test_damaged_state_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    file = series_recipe(tmp_path, MODELS[:1])
    assert command("train", file) == 0
    for damage in ("", "{", "[]", '{"series": {}}', '{"series": {}, "runs": {"a": {"x": 1}}}'):
        (tmp_path / "out/three/series.json").write_text(damage)
        assert "series.json is damaged" in complaint(capsys, "train", file)


def test_two_calls_at_once_are_refused(tmp_path: Path, capsys: Capture) -> None:
    file = series_recipe(tmp_path)
    folder = tmp_path / "out/three"
    with training(folder):
        assert "is being trained by another call" in complaint(capsys, "train", file)
        assert "is being trained" in complaint(capsys, "train", file, "--model", "small")
    with training(folder, "small"), training(folder, "large"):
        assert "is being trained by another call" in complaint(capsys, "train", file)
        said = complaint(capsys, "train", file, "--model", "small")
        assert "small is being trained by another call" in said
    assert starts(tmp_path) == []
    assert command("train", file) == 0


def call(*arguments: Any, **environ: str) -> subprocess.Popen[bytes]:
    """The real program in a process group of its own, with pretended training."""
    code = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(PRETEND.parent)!r}]\n"
        "from posttrain.cli import experiments, main\n"
        "from test_series import pretend\n"
        "experiments.command = pretend\n"
        "main.main()\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(PRETEND.parents[1]), **environ},
    )


def wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def kill_after(folder: Path, process: subprocess.Popen[bytes], num_starts: int) -> None:
    """Kill a call and its runs at the moment at which so many runs have been started."""
    wait_for(lambda: len(starts(folder)) >= num_starts or process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_killed_call_leaves_no_lock_and_resumes(tmp_path: Path, capsys: Capture) -> None:
    file = series_recipe(tmp_path)
    fault(tmp_path, other="hang")
    process = call("train", file)
    metrics = tmp_path / "out/three"
    wait_for(lambda: [*metrics.glob("other_*/checkpoint-2")])
    assert "is being trained by another call (other in process" in complaint(capsys, "train", file)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    fault(tmp_path)
    assert command("train", file) == 0
    assert starts(tmp_path) == [
        ["three", "small", "0"],
        ["three", "other", "0"],
        ["three", "other", "2"],
        ["three", "large", "0"],
    ]


@pytest.mark.slow
def test_a_run_that_outlives_its_call_keeps_the_lock(tmp_path: Path, capsys: Capture) -> None:
    file = series_recipe(tmp_path, MODELS[:1])
    fault(tmp_path, small="hang")
    process = call("train", file)
    wait_for(lambda: [*(tmp_path / "out/three").glob("small_*/checkpoint-2")])
    process.kill()  # not its child
    process.wait()
    child = read_state(tmp_path / "out/three")[1]["small"].pid
    assert child is not None
    said = complaint(capsys, "train", file)
    assert f"is being trained by another call (small in process {child})" in said
    os.kill(child, signal.SIGKILL)
    process.communicate()
    fault(tmp_path)
    wait_for(lambda: command("train", file) == 0)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_series_after_its_run(tmp_path: Path, number: int) -> None:
    file = series_recipe(tmp_path)
    fault(tmp_path, other="hang")
    process = call("train", file)
    folder = tmp_path / "out/three"
    wait_for(lambda: [*folder.glob("other_*/checkpoint-2")])
    # a terminal sends SIGINT to the group, SLURM sends SIGTERM to the call
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"stopping: waiting for the runs in progress" in out
    assert out.splitlines()[-1] == b"error: interrupted"
    assert [run["state"] for run in results(tmp_path).values()] == [
        "finished",
        "interrupted",
        "waiting",
    ]
    fault(tmp_path)
    assert command("train", file) == 0
    assert ["three", "other", "2"] in starts(tmp_path)


def test_under_torchrun_a_series_says_how(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = series_recipe(tmp_path)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(distributed, "leave", sys.exit)  # it would end the tests
    said = complaint(capsys, "train", file)
    assert "call posttrain launch, or torchrun, once for each of them" in said
    assert "with --model-index (0 to 2)" in said


def test_one_model_in_this_process_counts_as_part_of_the_series(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = series_recipe(tmp_path, MODELS[:1] + MODELS[2:], max_steps=3)

    def trained(config: Config, run_dir: Path) -> None:
        save_config(config, run_dir / "config.yaml")
        (run_dir / "metrics.jsonl").write_text('{"step": 3, "loss": 0.5, "eval_loss": 0.75}\n')

    monkeypatch.setattr(one, "train", trained)
    assert "run: " in output_of(capsys, "train", file, "--model-index", "1")
    assert starts(tmp_path) == []
    record = read_state(tmp_path / "out/three")[1]["large"]
    assert record.state == "finished"
    before = state(tmp_path)
    output_of(capsys, "train", file, "--model", "large")  # not repeated
    assert state(tmp_path) == before
    assert command("train", file) == 0
    assert [label for _, label, _ in starts(tmp_path)] == ["small"]
    assert {run["state"] for run in results(tmp_path).values()} == {"finished"}
    assert results(tmp_path)["large"]["metrics"] == {"eval_loss": 0.75}


def test_one_model_that_is_stopped_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = series_recipe(tmp_path)

    def stopped(config: Config, run_dir: Path) -> None:
        raise Interrupted("stopped after step 1 of 3", signal.SIGTERM)

    monkeypatch.setattr(one, "train", stopped)
    assert command("train", file, "--model-index", "0") == 143
    record = read_state(tmp_path / "out/three")[1]["small"]
    assert (record.state, record.error) == ("interrupted", None)


def test_one_model_that_fails_is_recorded(tmp_path: Path, capsys: Capture) -> None:
    models = [{"label": "gone", "name": "/nowhere/model"}]
    file = series_recipe(tmp_path, models)
    assert "the folder /nowhere/model does not exist" in complaint(
        capsys, "train", file, "--model-index", "0"
    )
    record = read_state(tmp_path / "out/three")[1]["gone"]
    assert record.state == "failed"
    assert record.error == "model.name: the folder /nowhere/model does not exist"


def test_cores_and_gpus_are_shared_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [environment(i, 3)["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["4", "6", "4"]
    assert environment(0, 1)["CUDA_VISIBLE_DEVICES"] == "4,6"
    assert "OMP_NUM_THREADS" not in environment(0, 1)
    assert int(environment(0, 2)["OMP_NUM_THREADS"]) == max(1, (os.cpu_count() or 1) // 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert environment(1, 2)["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert environment(1, 2)["OMP_NUM_THREADS"] == "5"


def numbers(run_dir: Path) -> list[dict[str, Any]]:
    """The metrics of a run that do not depend on the clock."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [repeatable(line) for line in lines]


@pytest.mark.slow
def test_real_runs_are_resumed_bit_for_bit(tmp_path: Path) -> None:
    models = [MODELS[0], {"label": "gone", "name": "/nowhere/model"}, MODELS[2]]
    file = series_recipe(tmp_path, models, max_steps=30, save_steps=1, eval_steps=10)
    real = [sys.executable, "-m", "posttrain", "train", str(file), "--output-dir"]
    subprocess.run([*real, str(tmp_path / "whole")], check=False)
    process = subprocess.Popen([*real, str(tmp_path / "killed")], start_new_session=True)
    killed = tmp_path / "killed/three"
    for label in ("small", "large"):
        wait_for(lambda label=label: [*killed.glob(f"{label}_*/checkpoint-[2-9]")], 300)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process = subprocess.Popen([*real, str(tmp_path / "killed")], start_new_session=True)
    assert process.wait(timeout=600) == 1
    for label in ("small", "large"):
        (run,) = killed.glob(f"{label}_*")
        (other,) = (tmp_path / "whole/three").glob(f"{label}_*")
        assert numbers(run) == numbers(other)
        weights = "checkpoint-30/model.safetensors"
        assert (run / weights).read_bytes() == (other / weights).read_bytes()
    content = json.loads((killed / "results.json").read_text())
    assert [run["state"] for run in content["runs"]] == ["finished", "failed", "finished"]
    assert content["runs"][1]["error"] == "model.name: the folder /nowhere/model does not exist"
