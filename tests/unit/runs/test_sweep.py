"""Sweeps: how values are written, the grid of runs, and the search with optuna."""

import json
import random
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from command import Capture, command, complaint, output_of, recipe, state
from test_series import (  # noqa: F401
    _wide,
    call,
    fault,
    kill_after,
    pretend,
    results,
    starts,
)

from posttrain.model.folder import CHECKPOINT_INFO, checkpoints_in
from posttrain.runs.series.grid import Axis, Value, labels_of, read_axes, split_values
from posttrain.runs.series.results import mode_of
from posttrain.runs.series.search import Lines, Search, Study, database, drop_checkpoints
from posttrain.runs.series.state import Record, read_state, write_record

RATES = "trainer.learning_rate=1e-3,2e-3,3e-3"


def sweep_recipe(folder: Path, evaluated: bool = True, **trainer: Any) -> Path:
    file = recipe(folder)
    tree = yaml.safe_load(file.read_text())
    tree["trainer"] |= {"max_steps": 4, "save_steps": 2, **trainer}
    if evaluated:
        tree["trainer"]["eval_steps"] = 1
        tree["eval"] = {"data": tree["data"]}
    file.write_text(yaml.safe_dump(tree))
    return file


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-5,2e-5", ["1e-5", "2e-5"]),
        ("1e-5, 2e-5 ,3", ["1e-5", "2e-5", "3"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ("[[1,2],[3]]", ["[[1,2],[3]]"]),
        ("{a: 1, b: [2,3]},{a: 3}", ["{a: 1, b: [2,3]}", "{a: 3}"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ('"a,b","c\\",d"', ['"a,b"', '"c\\",d"']),
        ("'it''s, so',b", ["'it''s, so'", "b"]),
        ("don't,do", ["don't", "do"]),
        ("a[1],b]", ["a[1]", "b]"]),
        ("['a,]',b],c", ["['a,]',b]", "c"]),
        ("{a: 'x}', b: 1},2", ["{a: 'x}', b: 1}", "2"]),
        ("null,1", ["null", "1"]),
        ("a b,c d", ["a b", "c d"]),
        ("x", ["x"]),
        ("", [""]),
        ("'',a", ["''", "a"]),
        ("a:b,c", ["a:b", "c"]),
    ],
)
def test_values_are_cut_at_commas_outside_quotes_and_brackets(
    text: str, expected: list[str]
) -> None:
    assert split_values("k=v", text) == expected


@pytest.mark.parametrize("text", ["[1,2", "{a: 1", "'a,b", '"a,b', "[1,'2]"])
def test_what_is_not_closed_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a quote or a bracket is not closed"):
        split_values("k=v", text)


def test_values_are_read_as_yaml() -> None:
    (axis,), fixed = read_axes(["a.b=1e-5,'1,2',[1, 2],true,x: y,007,null", "c=1"], False)
    values = [value.value for value in axis.values]
    assert values == [1e-5, "1,2", [1, 2], True, {"x": "y"}, "007", None]
    assert values[4].text == "x: y"
    assert fixed == ["c=1"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "a sweep needs a key with several values"),
        (["trainer.seed=1"], "a sweep needs a key with several values"),
        (["trainer.seed"], "override 'trainer.seed' is not of the form"),
        (["=1,2"], "is not of the form"),
        (["trainer.seed=1,,2"], "a value is missing beside a comma"),
        (["trainer.seed=1,2,"], "a value is missing beside a comma"),
        (["trainer.seed=,"], "a value is missing beside a comma"),
        (["trainer.adam_betas=[1,2],[3"], "a quote or a bracket is not closed"),
        (["trainer.seed=1,2", "trainer.seed=3"], "trainer.seed is given 2 times"),
        (["trainer.seed=1,2", "trainer={}"], "trainer and trainer.seed are both given"),
        (["trainer.sed=1,2"], "sed-1: unknown key trainer.sed: did you mean seed?"),
        (["trainer.seed=1,x"], "seed-x: trainer.seed: input should be a valid integer"),
        (["trainer.learning_rate=1,-1"], "learning_rate--1: trainer.learning_rate: input should"),
        (["trainer.seed=1,1"], "are the same run"),
        (["trainer.learning_rate=1e-3,0.001"], "are the same run"),
        (["trainer.learning_rate=1,1.0"], "are the same run"),
        (["trainer.run_name=a,b"], "are the same run"),
        (["trainer.learning_rate=log(1e-5,1e-3)"], "log(...) is for a search"),
        (["trainer.type=sft,dpoo"], "type-dpoo"),
        (["data.0.path=a,b"], "data"),
        (
            [
                f"trainer.seed={','.join(map(str, range(40)))}",
                f"trainer.warmup={','.join(map(str, range(40)))}",
            ],
            "the grid has 1,600 runs, more than 1,000",
        ),
        (["trainer.seed=1,2", "--trials", "3"], "--trials is for --search optuna"),
        (["trainer.seed=1,2", "--search", "grid"], "--search: expected optuna, got grid"),
        (["trainer.seed=1,2", "--mode", "max"], "--mode needs --metric"),
        (["trainer.seed=1,2", "--mode", "up", "--metric", "x"], "'up' is not one of"),
        (["trainer.seed=1,2", "--search", "optuna"], "--search needs --metric"),
        (["trainer.seed=1,2", "--model", "x"], "has one model"),
        (
            ["trainer.seed=1,2", "--jobs", "0"],
            "--jobs': Input should be greater than or equal to 1",
        ),
        (["trainer.resume_from_checkpoint=latest", "trainer.seed=1,2"], "remove trainer.resume"),
        (["trainer.seed=1,2", "--output-dir", "run.yaml"], "run.yaml is a file, not a folder"),
        (["models=[a]", "trainer.seed=1,2"], "give either model or models"),
    ],
)
def test_a_wrong_sweep_is_one_line(
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    expected: str,
) -> None:
    file = sweep_recipe(tmp_path)
    before = state(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert expected in complaint(capsys, "sweep", file, *overrides)
    assert state(tmp_path) == before


SEARCH = ["--search", "optuna", "--trials", "3", "--metric", "eval_loss"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.learning_rate=log(1e-3,1e-5)", "the lowest value comes first"),
        ("trainer.learning_rate=log(0,1)", "log needs a lowest value above 0, got 0"),
        ("trainer.learning_rate=log(1e-3)", "expected log(LOWEST,HIGHEST), two numbers"),
        ("trainer.learning_rate=uniform(a,b)", "expected uniform(LOWEST,HIGHEST), two numbers"),
        ("trainer.learning_rate=uniform(1,1)", "the lowest value comes first"),
        ("trainer.learning_rate=uniform(0,.inf)", "the lowest value comes first"),
        ("trainer.learning_rate=uniform(true,false)", "expected uniform(LOWEST,HIGHEST)"),
        ("trainer.seed=int(1,2.5)", "int needs two integers, got 1 and 2.5"),
        ("trainer.seed=uniform(0,9)", "trainer.seed: input should be a valid integer"),
        ("trainer.seed=log(1,100)", "trainer.seed: input should be a valid integer"),
        ("trainer.learning_rate=uniform(-1,1)", "trainer.learning_rate: input should be greater"),
        ("trainer.scheduler=choice(cosine)", "choice needs two values or more"),
        ("trainer.scheduler=choice(cosine,cosin)", "trainer.scheduler"),
        ("trainer.sed=int(1,2)", "unknown key trainer.sed"),
    ],
)
def test_a_wrong_space_is_one_line(
    tmp_path: Path, capsys: Capture, override: str, expected: str
) -> None:
    file = sweep_recipe(tmp_path)
    assert expected in complaint(capsys, "sweep", file, override, *SEARCH)
    assert not (tmp_path / "out").exists()


def test_names_of_runs() -> None:
    rows = [[Value("1e-5", 1e-5), Value("a", "org/a b")], [Value("3", 3), Value("n", None)]]
    assert labels_of(["trainer.learning_rate", "model.name"], rows) == [
        "learning_rate-1e-05_name-a-b",
        "learning_rate-3_name-null",
    ]
    both = labels_of(["data.path", "eval.data.path"], [[Value("x", "x/y"), Value("z", "z")]])
    assert both == ["data.path-y_eval.data.path-z"]
    same = labels_of(["data.path"], [[Value("x/y", "x/y")], [Value("z/y", "z/y")]])
    assert len(set(same)) == 2
    assert all(label.startswith("path-y_") for label in same)
    (long,) = labels_of(["a.b"] * 9, [[Value(c * 40, c * 40) for c in "abcdefghi"]])
    assert len(long) < 120


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("eval_loss", "min"),
        ("eval_perplexity", "min"),
        ("eval_accuracy", "max"),
        ("eval_reward", "max"),
        ("eval_kl", "min"),
        ("eval_f1/yes", "max"),
        ("eval_skill", "max"),
        ("eval_x/loss", "min"),
    ],
)
def test_which_values_are_better(metric: str, expected: str) -> None:
    assert mode_of(metric) == expected


def test_a_grid_runs_once_and_names_its_best(tmp_path: Path, capsys: Capture) -> None:
    file = sweep_recipe(tmp_path)
    call = ["sweep", file, RATES, "trainer.seed=0,1", "trainer.max_steps=3", "--jobs", "3"]
    out = output_of(capsys, *call, "--metric", "eval_loss")
    assert sorted(starts(tmp_path)) == sorted(
        ["run-sweep", f"learning_rate-{rate}_seed-{seed}", "0"]
        for rate in ("0.001", "0.002", "0.003")
        for seed in (0, 1)
    )
    assert "best: learning_rate-0.002_seed-0, eval_loss 0.833333" in out
    (repeat,) = [line for line in out.splitlines() if line.startswith("repeat it with: ")]
    words = shlex.split(repeat.removeprefix("repeat it with: "))
    assert words == [
        "posttrain",
        "train",
        str(file),
        "trainer.max_steps=3",
        "trainer.learning_rate=2e-3",
        "trainer.seed=0",
    ]
    found = results(tmp_path, "run-sweep")
    assert len(found) == 6
    assert found["learning_rate-0.003_seed-1"]["params"] == {
        "trainer.learning_rate": 0.003,
        "trainer.seed": 1,
    }
    # more values: the others are not repeated; the best is the highest of another metric
    call[2] += ",4e-3"
    out = output_of(capsys, *call, "--metric", "eval_accuracy")
    assert len(starts(tmp_path)) == 8
    assert "best: learning_rate-0.002_seed-0, eval_accuracy" in out
    page = (tmp_path / "out/run-sweep/report.html").read_text()
    assert '"metric":"eval_accuracy","mode":"max"' in page


def test_a_metric_that_is_not_written_is_named_with_those_there_are(
    tmp_path: Path, capsys: Capture
) -> None:
    file = sweep_recipe(tmp_path)
    said = complaint(capsys, "sweep", file, RATES, "--metric", "eval_f1")
    assert (
        "--metric: learning_rate-0.001 wrote no metric eval_f1; it has eval_loss, eval_accuracy"
        in said
    )
    assert len(starts(tmp_path)) == 1, "the other runs were trained for nothing"
    file = sweep_recipe(tmp_path, evaluated=False, run_name="without")
    said = complaint(capsys, "sweep", file, RATES, "--metric", "eval_loss")
    assert "got 'eval_loss': add an eval section and trainer.eval_steps" in said
    assert len(starts(tmp_path)) == 1


def test_a_sweep_of_another_recipe_is_refused(tmp_path: Path, capsys: Capture) -> None:
    file = sweep_recipe(tmp_path)
    output_of(capsys, "sweep", file, RATES)
    said = complaint(capsys, "sweep", file, RATES, "trainer.batch_size=2")
    assert "learning_rate-0.001 (trainer.batch_size was 4, now 2)" in said
    output_of(capsys, "sweep", file, RATES, "trainer.batch_size=2", "--retrain")
    assert len(starts(tmp_path)) == 6


def test_a_failed_run_of_a_grid_is_in_its_results(tmp_path: Path) -> None:
    file = sweep_recipe(tmp_path)
    fault(tmp_path, **{"learning_rate-0.002": "error"})
    assert command("sweep", file, RATES, "--metric", "eval_loss", "--jobs", "2") == 1
    found = results(tmp_path, "run-sweep")
    assert [run["state"] for run in found.values()] == ["finished", "failed", "finished"]
    content = json.loads((tmp_path / "out/run-sweep/results.json").read_text())
    assert content["best"] == "learning_rate-0.001"


def test_a_sweep_of_one_model_of_a_list(tmp_path: Path, capsys: Capture) -> None:
    file = sweep_recipe(tmp_path)
    tree = yaml.safe_load(file.read_text())
    tree["models"] = [{"label": "a", **tree.pop("model")}, "org/b"]
    file.write_text(yaml.safe_dump(tree))
    said = complaint(capsys, "sweep", file, RATES)
    assert "a sweep takes one model: choose one of" in said
    assert "(a, b)" in said
    output_of(capsys, "sweep", file, RATES, "--model", "b")
    records = read_state(tmp_path / "out/run-sweep")[1]
    assert {record.config["model"]["name"] for record in records.values()} == {"org/b"}


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "kills"), [("1", 4), ("3", 1)])
def test_a_sweep_killed_at_random_ends_as_an_uninterrupted_one(
    tmp_path: Path, jobs: str, kills: int
) -> None:
    """SIGKILL of the whole process group, again and again: every run once, with its numbers."""
    rng = random.Random(int(jobs))
    file = sweep_recipe(tmp_path, max_steps=6)
    arguments = ["sweep", file, RATES, "trainer.seed=0,1,2,3", "--metric", "eval_loss"]
    whole = tmp_path / "whole"
    assert command(*arguments, "--output-dir", whole, "--jobs", "3") == 0
    for _ in range(kills):
        before = len(starts(tmp_path))
        process = call(*arguments, "--jobs", jobs, PRETEND_SECONDS="0.03")
        kill_after(tmp_path, process, before + rng.randint(1, 4))
    assert command(*arguments, "--jobs", jobs) == 0
    folder = tmp_path / "out/run-sweep"
    runs = [path.name for path in folder.glob("learning_rate-*")]
    assert len(runs) == 12
    ends = [label for _, label, _ in starts(tmp_path)]
    assert len(ends) > 12, "nothing was killed"
    assert results(tmp_path, "run-sweep").keys() == set(ends)
    expected = json.loads((whole / "run-sweep/results.json").read_text())
    got = json.loads((folder / "results.json").read_text())
    assert got["best"] == expected["best"]
    for run, other in zip(got["runs"], expected["runs"]):
        assert run["state"] == "finished"
        assert {k: run[k] for k in ("label", "loss", "metrics", "steps", "value")} == {
            k: other[k] for k in ("label", "loss", "metrics", "steps", "value")
        }
        lines = (folder / run["run"] / "metrics.jsonl").read_text()
        assert lines == (whole / "run-sweep" / other["run"] / "metrics.jsonl").read_text()


def optuna_of(folder: Path, name: str = "run-search") -> list[tuple[int, str, dict[str, Any]]]:
    optuna = pytest.importorskip("optuna")
    study = optuna.load_study(
        study_name=None, storage=database(folder / "out" / name / "optuna.db")
    )
    return [(t.number, t.state.name, t.params) for t in study.get_trials()]


SPACE = ["trainer.learning_rate=log(1e-4,1e-2)", "trainer.seed=int(0,3)"]


def test_a_search_is_resumed_and_proposes_the_same(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("optuna")
    file = sweep_recipe(tmp_path)
    search = [*SPACE, "trainer.scheduler=cosine,linear", "--search", "optuna"]
    search += ["--metric", "eval_loss"]
    output_of(capsys, "sweep", file, *search, "--trials", "1")
    out = output_of(capsys, "sweep", file, *search, "--trials", "3")
    trials = optuna_of(tmp_path)
    assert [state for _, state, _ in trials] == ["COMPLETE"] * 3
    assert [label for _, label, _ in starts(tmp_path)] == [f"trial-{i}" for i in range(3)]
    found = results(tmp_path, "run-search")
    best = min(found.values(), key=lambda run: run["value"])
    assert f"best: {best['label']}, eval_loss" in out
    assert shlex.join(best["overrides"]) in out
    rate = best["params"]["trainer.learning_rate"]
    assert f"trainer.learning_rate={rate!r}" in best["overrides"]
    page = (tmp_path / "out/run-search/report.html").read_text()
    assert '{"name":"trainer.learning_rate","log":true}' in page

    output_of(
        capsys, "sweep", file, *search, "--trials", "3", "--output-dir", tmp_path / "out" / "x"
    )
    (tmp_path / "out/x/run-search").rename(tmp_path / "out/whole")
    assert optuna_of(tmp_path, "whole") == trials, "the seeded sampler proposed something else"


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    file = sweep_recipe(tmp_path, max_steps=5)
    search = [*SPACE, "--search", "optuna", "--metric", "eval_loss", "--trials", "6"]
    for number in (2, 4):
        process = call("sweep", file, *search, PRETEND_SECONDS="0.05")
        kill_after(tmp_path, process, number)
    assert command("sweep", file, *search) == 0
    trials = optuna_of(tmp_path)
    assert {state for _, state, _ in trials} <= {"COMPLETE", "PRUNED"}
    assert len(trials) == 6
    assert len(list((tmp_path / "out/run-search").glob("trial-*"))) == 6
    assert len(results(tmp_path, "run-search")) == 6


def test_a_worse_trial_than_the_median_is_ended(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    tree = yaml.safe_load(sweep_recipe(tmp_path).read_text())
    (axis,), _ = read_axes(["trainer.seed=int(0,99)"], True)
    search = Search(tree, "run.yaml", [axis], [], "eval_loss", "min", 20)
    study = Study(tmp_path, search, 1)
    upcoming = study.upcoming()
    record = Record("running", "run", {}, "0")
    (tmp_path / "run").mkdir()
    ended = []
    for values in ([1, 1], [2, 2], [3, 3], [2, 2], [3, 3], [9, 1], [2.5, 2.5], [1.5, 1.4]):
        job: Any = SimpleNamespace(
            member=next(upcoming), metrics=tmp_path / "run/metrics.jsonl", stopped=False
        )
        job.stop = lambda job=job: setattr(job, "stopped", True)
        for k in (1, 2):
            lines = [{"step": 5 * (i + 1), "eval_loss": v} for i, v in enumerate(values[:k])]
            lines.append({"step": 11, "loss": 1.0})
            job.metrics.unlink(missing_ok=True)
            job.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
            study.watch(job)
            study.watch(job)
        ended.append(job.stopped)
        study.tell(job.member, replace(record, state="pruned" if job.stopped else "finished"))
    assert ended == [False] * 5 + [True, True, False]
    (first, *_) = study.study.get_trials()
    assert first.intermediate_values == {5: 1.0, 10: 1.0}


@pytest.mark.slow
def test_hopeless_trials_are_pruned(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    file = sweep_recipe(tmp_path, max_steps=8)
    rates = ",".join(["2e-3", *(f"{k}e-2" for k in range(3, 9))])
    search = [f"trainer.learning_rate={rates}", "--search", "optuna", "--trials", "14"]
    process = call("sweep", file, *search, "--metric", "eval_loss", PRETEND_SECONDS="0.3")
    process.communicate(timeout=300)
    states = [state for _, state, _ in optuna_of(tmp_path)]
    assert states[:5] == ["COMPLETE"] * 5
    assert "PRUNED" in states
    pruned = [r for r in results(tmp_path, "run-search").values() if r["state"] == "pruned"]
    assert pruned
    assert all(run["steps"] < 8 and run["value"] is None for run in pruned)
    records = read_state(tmp_path / "out/run-search")[1].values()
    kept = {r.state: checkpoints_in(tmp_path / "out/run-search" / r.run) for r in records}
    assert kept["finished"]
    assert kept["pruned"] == []


def test_a_pruned_trial_keeps_all_but_its_checkpoints(tmp_path: Path) -> None:
    for how in ("finished", "failed", "interrupted", "pruned"):
        for step in (2, 4):
            checkpoint = tmp_path / how / f"checkpoint-{step}"
            checkpoint.mkdir(parents=True)
            (checkpoint / CHECKPOINT_INFO).write_text("{}")
        (tmp_path / how / "metrics.jsonl").touch()
        write_record(tmp_path, how, Record(how, how, {}, "0"))  # type: ignore[arg-type]
    drop_checkpoints(tmp_path)
    drop_checkpoints(tmp_path)
    assert [p.name for p in (tmp_path / "pruned").iterdir()] == ["metrics.jsonl"]
    assert all(
        len(checkpoints_in(tmp_path / how)) == 2 for how in ("finished", "failed", "interrupted")
    )


def test_a_failed_trial_is_replaced_by_the_next_call(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    file = sweep_recipe(tmp_path)
    fault(tmp_path, **{"trial-1": "error"})
    call = ["sweep", file, *SPACE, *SEARCH]
    assert command(*call) == 1
    assert [state for _, state, _ in optuna_of(tmp_path)] == ["COMPLETE", "FAIL", "COMPLETE"]
    fault(tmp_path)
    assert command(*call) == 1  # the failed one is still in the summary
    assert [state for _, state, _ in optuna_of(tmp_path)][3:] == ["COMPLETE"]


def test_another_search_in_the_folder_is_refused(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("optuna")
    file = sweep_recipe(tmp_path)
    output_of(capsys, "sweep", file, *SPACE, *SEARCH)
    said = complaint(capsys, "sweep", file, SPACE[0], *SEARCH)
    assert "holds another search (space was ['trainer.learning_rate=log(0.0001,0.01)'" in said
    said = complaint(capsys, "sweep", file, *SPACE, *SEARCH[:-1], "eval_accuracy")
    assert "metric was eval_loss, now eval_accuracy" in said
    said = complaint(capsys, "sweep", file, *SPACE, *SEARCH, "trainer.batch_size=2")
    assert "trainer.batch_size was 4, now 2" in said
    rows = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(rows.replace("#### 1", "#### 2"))
    assert "rows.jsonl changed" in complaint(capsys, "sweep", file, *SPACE, *SEARCH)
    (tmp_path / "rows.jsonl").write_text(rows)
    output_of(capsys, "sweep", file, *SPACE, *SEARCH, "trainer.logging_steps=2")
    assert len(starts(tmp_path)) == 3


def test_a_search_needs_evaluations_and_optuna(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = sweep_recipe(tmp_path, evaluated=False)
    said = complaint(capsys, "sweep", file, *SPACE, *SEARCH)
    assert "got 'eval_loss': add an eval section" in said
    file = sweep_recipe(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    said = complaint(capsys, "sweep", file, *SPACE, *SEARCH)
    assert "the search needs optuna: pip install 'posttrain[sweep]'" in said


def test_axes_say_what_they_are() -> None:
    (axis,), _ = read_axes(["a.b=log(1e-6,1e-3)"], True)
    assert axis == Axis("a.b", "log", (), 1e-6, 1e-3)
    assert axis.words == "a.b=log(1e-06,0.001)"
    assert axis.samples == pytest.approx([1e-6, 1e-6 * 1000**0.41421, 1e-3], rel=1e-3)
    (axis,), _ = read_axes(["a.b=int( 2 , 5 )"], True)
    assert axis.samples == [2, 5]
    (axis,), _ = read_axes(["a.b=choice([1,2],[3])"], True)
    assert axis.samples == [[1, 2], [3]]


def test_lines_of_a_growing_file_are_read_once(tmp_path: Path) -> None:
    file, lines = tmp_path / "metrics.jsonl", Lines()
    assert lines.new(file) == []
    with file.open("w") as out:
        out.write('{"step": 1}\n{"st')
        out.flush()
        assert lines.new(file) == [{"step": 1}]
        out.write('ep": 2}\n\n')
        out.flush()
        assert lines.new(file) == [{"step": 2}]
        assert lines.new(file) == []
    (tmp_path / "new").write_text('{"step": 1}\n{"step": 9}\n')
    (tmp_path / "new").rename(file)
    assert lines.new(file) == [{"step": 1}, {"step": 9}]
