"""What a run and its results show, and the commands that print: from Python."""

from __future__ import annotations

import json
import os
import pickle
from html import unescape
from pathlib import Path
from typing import Any

import numpy
import pytest
import tiny
import torch
import yaml

import posttrain
from posttrain.evaluation.compare import Comparison, Comparisons
from posttrain.evaluation.console import Results


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> posttrain.Run:
    tree = tiny.run_config(tmp_path_factory.mktemp("api"), eval_steps=2)
    return posttrain.train(tree, trainer={"max_steps": 4}, eval={"max_samples": 4})


def folder_with(path: Path, *lines: Any) -> Path:
    """A run directory with only these lines of metrics; a text is written as it is."""
    path.mkdir()
    texts = [line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines]
    (path / "metrics.jsonl").write_text("".join(texts))
    return path


def result(*outcomes: str, **figures: Any) -> dict[str, Any]:
    solved = sum(outcome == "1" for outcome in outcomes)
    return {
        "accuracy": solved / len(outcomes),
        "ci95": [0.0, 1.0],
        "num_problems": len(outcomes),
        "outcomes": {str(i): outcome for i, outcome in enumerate(outcomes)},
        **figures,
    }


def test_a_dry_run_prints_and_writes_nothing(tmp_path: Path, capfd: Any) -> None:
    tree = tiny.run_config(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert posttrain.dry_run(tree, trainer={"max_steps": 7}) is None
    shown = capfd.readouterr().out
    assert "7 steps of" in shown
    assert "memory, estimated:" in shown
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match=r"trainer\.max_step: did you mean max_steps"):
        posttrain.dry_run(tree, trainer={"max_step": 7})


def test_a_preview_marks_what_is_trained_on(tmp_path: Path, capfd: Any) -> None:
    tree = tiny.run_config(tmp_path)
    assert posttrain.preview(tree, num_rows=2) is None
    shown = capfd.readouterr().out
    assert shown.count("[[") == 2, "no colours in a file"
    assert "row 2" in shown
    assert "row 3" not in shown
    for number in (0, -1):
        with pytest.raises(ValueError, match="num_rows"):
            posttrain.preview(tree, num_rows=number)


def test_colours_replace_the_brackets(tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    from rich.console import Console

    from posttrain.runs import preview

    for no_color, brackets in ((False, False), (True, True)):
        console = Console(color_system="standard", force_jupyter=False, no_color=no_color)
        monkeypatch.setattr(preview, "CONSOLE", console)
        posttrain.preview(tiny.run_config(tmp_path), num_rows=1)
        assert ("[[" in capfd.readouterr().out) is brackets


def test_resume_continues_the_newest_run_or_starts_one(tmp_path: Path) -> None:
    tree = tiny.run_config(tmp_path, max_steps=3, run_name="again")
    first = posttrain.train(tree, resume=True)
    again = posttrain.train(tree, resume=True)
    assert again.folder == first.folder
    assert list(again.column("loss")) == [1, 2, 3]
    config = posttrain.load_config(tree)
    assert posttrain.train(config, resume=True).folder == first.folder
    with pytest.raises(ValueError, match="all with another config"):
        posttrain.train(tree, resume=True, trainer={"learning_rate": 0.5})


def test_a_notebook_shows_a_config_as_yaml(tmp_path: Path) -> None:
    tree = tiny.run_config(tmp_path)
    config = posttrain.load_config(tree, trainer={"run_name": "a<b>"})
    page = config._repr_html_()
    assert page.startswith("<pre")
    assert "run_name: a&lt;b&gt;" in page
    assert "<b>" not in page
    text = unescape(page.partition(">")[2].removesuffix("</pre>"))
    assert posttrain.load_config(yaml.safe_load(text)) == config


def test_a_metric_as_a_column(run: posttrain.Run) -> None:
    losses = {line["step"]: line["loss"] for line in run.metrics if "loss" in line}
    assert run.column("loss") == losses
    assert list(run.column("eval_loss")) == [2, 4]
    with pytest.raises(ValueError, match="did you mean loss"):
        run.column("losss")


def test_the_samples_of_all_ranks_in_the_order_of_steps(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "run", {"step": 1, "loss": 1.0})
    assert posttrain.Run(folder).samples == []
    for name, steps in (("samples.jsonl", (1, 3)), ("samples-rank1.jsonl", (1, 2))):
        lines = [json.dumps({"step": step, "text": f"{name} {step}"}) for step in steps]
        (folder / name).write_text("\n".join(lines) + '\n{"step": 4, "te')
    steps = [sample["step"] for sample in posttrain.Run(folder).samples]
    assert steps == [1, 1, 2, 3], "a last line that was cut by a kill is left out"


def test_metrics_of_a_killed_run_are_its_whole_lines(tmp_path: Path) -> None:
    cut = folder_with(tmp_path / "cut", {"step": 1, "loss": 1.0}, '{"step": 2, "lo')
    assert posttrain.Run(cut).metrics == [{"step": 1, "loss": 1.0}]
    broken = folder_with(tmp_path / "broken", "nonsense\n", {"step": 2, "loss": 1.0})
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1 is not valid JSON"):
        posttrain.Run(broken).metrics  # noqa: B018


def test_a_notebook_shows_a_run_as_a_table(run: posttrain.Run) -> None:
    page = run._repr_html_()
    for text in ("finished, step 4 of 4", "sft, random weights", "eval_loss", "checkpoint-4"):
        assert text in page


@pytest.mark.parametrize(
    "lines",
    [(), ({"step": 1, "loss": None},), ({"step": 3, "loss": 1},), ('{"step": 1',)],
    ids=["empty", "null", "no more", "cut"],
)
@pytest.mark.parametrize("config", [None, "- a list", "a: [", "trainer: 3", "model: {name: <b>}"])
def test_a_damaged_run_is_shown_as_far_as_it_goes(
    tmp_path: Path, lines: tuple[Any, ...], config: str | None
) -> None:
    folder = folder_with(tmp_path / "<i>run", *lines)
    if config is not None:
        (folder / "config.yaml").write_text(config)
    page = posttrain.Run(folder)._repr_html_()
    assert "killed" in page
    assert "none" in page, "no checkpoints"
    assert "<i>" not in page
    assert "<b>" not in page


def test_results_are_shown_without_every_outcome() -> None:
    results = Results({"gsm8k": result(*"0110", verdicts={"correct": 2, "wrong": 2}, chrf=0.5)})
    for text in (repr(results), str(results), results._repr_html_()):
        assert "50.0 %" in text
        assert "correct 2, wrong 2" in text
        assert "outcomes" not in text
        assert len(text) < 1_500
    assert json.loads(json.dumps(results)) == results
    assert pickle.loads(pickle.dumps(results)) == results
    assert repr(Results({})) == "no results"
    assert "no results" in Results({})._repr_html_()
    assert "0.2500" in repr(Results({"liar": {"mean_length": 0.25}})), "a task without accuracy"


def test_evaluate_returns_such_results(run: posttrain.Run) -> None:
    results = posttrain.evaluate(run, "word_problems", max_samples=3, max_new_tokens=4)
    assert type(results) is Results
    assert results["word_problems"]["num_problems"] == 3


def test_two_results_are_compared_by_problem(tmp_path: Path) -> None:
    a, b = {"t": result(*"00000000")}, {"t": result(*"11111110")}
    compared = posttrain.compare(a, b)
    assert (compared["t"].only_a, compared["t"].only_b) == (0, 7)
    assert compared["t"].p_value == pytest.approx(2 / 2**7)
    for text in (repr(compared), compared._repr_html_()):
        assert "+87.5" in text
        assert "exact McNemar" in text
    (tmp_path / "results.json").write_text(json.dumps(b))
    for place in (tmp_path, str(tmp_path), tmp_path / "results.json"):
        assert posttrain.compare(a, place) == compared
        assert posttrain.compare(place, a)["t"].only_a == 7
    assert pickle.loads(pickle.dumps(compared)) == compared


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    some = {"t": result("0", "1")}
    other = {"t": {**result("1"), "outcomes": {"9": "1"}}}
    for a, b, message in (
        ({}, some, "A has none, B has t"),
        (some, {"t": {"accuracy": 1.0}}, "no task in common"),
        (some, other, "no problem in common"),
        (some, tmp_path, r"results\.json has no results"),
        (tmp_path / "missing.json", some, r"missing\.json has no results"),
    ):
        with pytest.raises(ValueError, match=message):
            posttrain.compare(a, b)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        posttrain.compare(some, tmp_path / "bad.json")


def test_a_task_that_only_one_has_is_named() -> None:
    a = {"t": result("0", "1"), "only_here": result("1")}
    compared = posttrain.compare(a, {"t": result("1", "1")})
    assert list(compared) == ["t"]
    assert compared.left_out == ["only_here"]
    assert "note: only_here: not compared" in repr(compared)


def test_no_comparisons_are_an_empty_table() -> None:
    assert "task" in repr(Comparisons({}))
    row = Comparison("<t>", 1, 0.0, 1.0, 0, 1, 1.0, "a test", ["<note>"])
    assert "<t>" not in Comparisons({"<t>": row})._repr_html_()
    assert "&lt;note&gt;" in Comparisons({"<t>": row})._repr_html_()


def test_runs_are_plotted_by_name(run: posttrain.Run, tmp_path: Path) -> None:
    other = folder_with(tmp_path / "other", {"step": 1, "loss": 9.0})
    for one in (run, str(run), run.folder, [run], {"any": run}):
        plot = posttrain.plot(one, "loss", "eval_loss")  # type: ignore[arg-type]
        assert [panel.metric for panel in plot.panels] == ["loss", "eval_loss"]
        assert len(plot.labels) == 1
    assert posttrain.plot({"a": run, "b": other}, "loss").labels == ("a", "b")
    assert posttrain.plot([run, other], "loss").labels == (run.folder.name, "other")
    assert run.plot("loss").panels[0].curves == {run.folder.name: list(run.column("loss").items())}


def test_odd_runs_are_refused(run: posttrain.Run, tmp_path: Path) -> None:
    for runs, message in (
        ([], "name at least one run"),
        ({}, "name at least one run"),
        ([run, run], "the same run directory is given twice"),
        (tmp_path, "is not a run directory"),
        ({"a": tmp_path / "missing"}, "is not a run directory"),
    ):
        with pytest.raises(ValueError, match=message):
            posttrain.plot(runs, "loss")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="and one metric"):
        run.plot()


def test_reports_of_one_and_of_several_runs(run: posttrain.Run, tmp_path: Path) -> None:
    other = folder_with(tmp_path / "other", {"step": 1, "loss": 9.0})
    assert posttrain.write_report(run) == run.report
    page = posttrain.write_report({"mine": run, "yours": other}, tmp_path / "new" / "both.html")
    for name in ("mine", "yours"):
        assert f'"name":"{name}"' in page.read_text()
    with pytest.raises(ValueError, match="output"):
        posttrain.write_report([run, other])
    with pytest.raises(ValueError, match="no run directory given"):
        posttrain.write_report([])


def test_a_completion_is_shown_without_its_tokens(run: posttrain.Run) -> None:
    (completion,) = posttrain.generate(run, "3 and 4?", max_new_tokens=3)
    assert len(completion.logprobs) == len(completion.token_ids) > 0
    assert "logprobs" not in repr(completion)
    assert repr(completion.text) in repr(completion)


def in_cell(prompts: Any, completions: list[str], completion_ids: Any, **columns: Any) -> Any:
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": {"type": "custom", "path": in_cell}}, r"^reward\.path: a function .* a Python"),
        ({"reward": in_cell}, "^reward: a function is not saved"),
        ({"reward.path": in_cell}, r"^reward\.path: a function"),
        ({"trainer": {"learning_rate": lambda step: 1}}, r"^trainer\.learning_rate: a function"),
        ({"model": {"name": torch.nn.Linear(2, 2)}}, r"^model\.name: expected .* got Linear$"),
        ({"trainer": {"logger": ["tensorboard", print]}}, r"^trainer\.logger\.1: a function"),
    ],
    ids=["path", "section", "dotted", "schedule", "model", "in a list"],
)
def test_code_and_models_are_no_values(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tree = tiny.run_config(tmp_path)
    with pytest.raises(ValueError, match=message) as raised:
        posttrain.load_config(tree, **changes)
    assert "\n" not in str(raised.value)


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    keys = {"max_steps": numpy.int64(7), "learning_rate": numpy.float32(0.5), "num_epochs": None}
    config = posttrain.load_config(tiny.run_config(tmp_path), trainer=keys)
    assert (config.trainer.max_steps, config.trainer.learning_rate) == (7, 0.5)
    assert type(config.trainer.max_steps) is int
    assert "max_steps: 7" in config._repr_html_()


@pytest.mark.parametrize(
    "broken", [3, {}, {"outcomes": 3}, {"outcomes": {"1": ""}}, {"outcomes": {"1": 1}}, None]
)
def test_damaged_results_are_not_compared(broken: Any) -> None:
    whole = {"t": result("0", "1")}
    for a, b in (({"t": broken}, whole), (whole, {"t": broken})):
        with pytest.raises(ValueError, match="no task in common"):
            posttrain.compare(a, b)


def test_what_would_be_ignored_is_refused(run: posttrain.Run, tmp_path: Path) -> None:
    tree = tiny.run_config(tmp_path)
    for keys in ({"resume": True}, {"trainer": {"resume_from_checkpoint": str(run)}}):
        with pytest.raises(ValueError, match="leave run_dir out"):
            posttrain.train(tree, run_dir=tmp_path / "elsewhere", **keys)  # type: ignore[arg-type]
    for tasks in ([], {}):
        with pytest.raises(ValueError, match="no task to evaluate on"):
            posttrain.evaluate(run, tasks)
    assert not (tmp_path / "elsewhere").exists()


def test_odd_places(run: posttrain.Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder: name the page"):
        posttrain.write_report(run, tmp_path)
    for write in (run.plot("loss").save, lambda path: posttrain.write_report(run, path)):
        with pytest.raises(ValueError, match="an address, not a path"):
            write("s3://bucket/x.svg")
    with pytest.raises(ValueError, match=r"no recipe .*, but a folder: name .*config\.yaml"):
        posttrain.dry_run(run)
    with pytest.raises(ValueError, match="no recipe"):
        posttrain.dry_run("")
    for metric in (["loss"], 3, None, b"loss"):
        with pytest.raises(ValueError, match="is not the name of a metric"):
            run.plot(metric)  # type: ignore[arg-type]


def test_env_files_are_found_beside_a_recipe_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KEY_OF_A_TEST", raising=False)
    monkeypatch.setattr("os.environ", dict(os.environ))
    (tmp_path / ".env").write_text("KEY_OF_A_TEST=here\n")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"model": 3}))
    with pytest.raises(ValueError, match="model"):
        posttrain.dry_run("~/r.yaml")
    assert os.environ["KEY_OF_A_TEST"] == "here"
