"""Tasks of `posttrain eval` while a run trains, and gates on what it must not lose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import test_preference_runs as runs
import tiny

from posttrain.evaluation.config import GateConfig
from posttrain.evaluation.evaluate import evaluate_tasks
from posttrain.evaluation.gate import lost
from posttrain.evaluation.tasks import Settings
from posttrain.runs.config import parse_config
from posttrain.runs.plan import plan
from posttrain.runs.train import train

PAIRS = (
    "sent_more,sent_less,stereo_antistereo,bias_type\n"
    "Tom has 3 apples.,Tom has 4 apples.,stereo,age\n"
    "Ann buys 2 cups.,Ann buys 5 cups.,antistereo,age\n"
)


def tree(folder: Path, method: str = "sft", **evaluation: Any) -> dict[str, Any]:
    made = tiny.run_config(folder, method, eval_steps=3)
    file = folder / "crows_pairs_anonymized.csv"
    file.write_text(PAIRS)
    tasks = ["word_problems", f"crows_pairs={file}"]
    made["eval"] = {"max_samples": 5, "max_new_tokens": 8, "tasks": tasks} | evaluation
    return made


def run(given: dict[str, Any]) -> Path:
    return train(parse_config(given, "test"))


def lines(run_dir: Path, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(x) for x in (run_dir / file).read_text().splitlines()]


def evaluations(run_dir: Path) -> list[dict[str, Any]]:
    return [x for x in lines(run_dir) if any(name.startswith("eval_") for name in x)]


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_figures_of_tasks_are_logged(method: str, tmp_path: Path) -> None:
    run_dir = run(tree(tmp_path, method))
    found = evaluations(run_dir)
    assert [line["step"] for line in found] == [3, 6]
    for line in found:
        assert 0 <= line["eval_word_problems/accuracy"] <= 1
        assert line["eval_crows_pairs/stereotype_preferred"] in (0, 0.5, 1)
        assert "eval_loss" not in line, "there is no data but the tasks'"
    kinds = [x["kind"] for x in lines(run_dir, "samples.jsonl") if x["step"] == 6]
    assert (kinds.count("word_problems"), kinds.count("crows_pairs")) == (5, 2)


def test_a_run_is_asked_later_as_it_was_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tree(tmp_path)
    given["data"] |= {"system_prompt": "Answer briefly.", "prompt_template": "chat"}
    run_dir = run(given)
    seen = [x for x in lines(run_dir, "samples.jsonl") if x.get("kind") == "word_problems"]
    last = [x for x in seen if x["step"] == 6]

    def asked(**settings: Any) -> list[tuple[str, str]]:
        file = tmp_path / "samples.jsonl"
        chosen = Settings(max_samples=5, max_new_tokens=8, **settings)
        evaluate_tasks(str(run_dir), ["word_problems"], chosen, samples=file)
        return [(x["prompt"], x["completion"]) for x in map(json.loads, file.open())]

    assert "Answer briefly." in last[0]["prompt"]
    assert asked() == [(x["prompt"], x["completion"]) for x in last]
    note = " ".join(capsys.readouterr().out.split())
    assert (
        "trained with data.prompt_template 'chat', but is evaluated with prompt_template None"
        in note
    )
    assert "Answer briefly." not in asked(system_prompt="")[0][0]
    assert "Answer at length." in asked(system_prompt="Answer at length.")[0][0]
    capsys.readouterr()
    filled = asked(prompt_template="chat")[0][0]
    assert "Answer briefly." in filled
    assert "Assistant:" in filled
    assert "prompt_template" not in capsys.readouterr().out


def test_evaluating_changes_nothing(tmp_path: Path) -> None:
    with_tasks = run(tree(tmp_path / "a"))
    without = tree(tmp_path / "b")
    del without["eval"], without["trainer"]["eval_steps"]
    without = run(without)
    assert [x["loss"] for x in lines(with_tasks) if "loss" in x] == [
        x["loss"] for x in lines(without)
    ]
    runs.assert_same_bits(with_tasks, without)


def test_tasks_beside_data_and_early_stopping(tmp_path: Path) -> None:
    data = {"name": "word_problems", "split": "test", "options": {"num_rows": 5}}
    given = tree(tmp_path, data=data)
    given["trainer"]["early_stopping"] = {
        "metric": "eval_crows_pairs/mean_difference",
        "mode": "max",
        "patience": 1,
    }
    found = evaluations(run(given))
    assert {"eval_loss", "eval_word_problems/accuracy"} <= found[0].keys()


def test_a_wrong_task_is_said_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no task 'word_problem'; did you mean word_problems"):
        plan(parse_config(tree(tmp_path, tasks=["word_problem"]), "test"))
    with pytest.raises(ValueError, match=r"the task poetry has no data of its own: write poetry=F"):
        plan(parse_config(tree(tmp_path, tasks=["poetry"]), "test"))
    with pytest.raises(ValueError, match="the task word_problems is given twice"):
        plan(parse_config(tree(tmp_path, tasks=["word_problems"] * 2), "test"))


def test_what_a_task_needs_is_said_before_anything_is_written(tmp_path: Path) -> None:
    given = tree(tmp_path, max_new_tokens=256)
    with pytest.raises(ValueError, match=r"^eval\.max_new_tokens: 256 leaves no room for a prompt"):
        run(given)
    assert list(tmp_path.glob("sft_*")) == []
    with pytest.raises(
        ValueError, match=r"eval\.tasks: reward_model trains no model that generates text"
    ):
        run(tree(tmp_path, "reward_model"))
    assert list(tmp_path.glob("reward_model_*")) == []


# --- gates ----------------------------------------------------------------------------------------


def test_a_run_is_evaluated_before_it_begins_and_fails_by_its_gate(tmp_path: Path) -> None:
    data = {"name": "word_problems", "split": "test", "options": {"num_rows": 5}}
    kept = run(tree(tmp_path / "a", data=data, gate=[{"metric": "eval_loss", "max_rise": 0}]))
    assert [line["step"] for line in evaluations(kept)] == [0, 3, 6]
    failing = tree(tmp_path / "b", data=data, gate=[{"metric": "eval_loss", "max_drop": 0}])
    with pytest.raises(ValueError, match=r"eval\.gate: eval_loss was .* before training and is "):
        run(failing)
    (run_dir,) = (tmp_path / "b").glob("sft_*")
    assert (run_dir / "checkpoint-6").is_dir()
    runs.assert_same_bits(kept, run_dir)
    unknown = tree(tmp_path / "c", gate=[{"metric": "eval_accuracy", "max_drop": 0.1}])
    with pytest.raises(ValueError, match="no metric eval_accuracy; there are eval_word_problems/"):
        run(unknown)
    (run_dir,) = (tmp_path / "c").glob("sft_*")
    assert lines(run_dir)[-1]["step"] == 0, "it is known before the first step"


def test_gates_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    steps = [
        {"step": 0, "eval_a": 0.6, "eval_b": 3, "eval_c": 1},
        {"step": 2, "eval_a": 0.5},
        {"step": 4, "loss": 1},
        {"step": 4, "eval_a": 0.58, "eval_b": 5, "eval_c": 1},
        {"step": 5, "loss": 1},
    ]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in steps))
    assert lost([GateConfig(metric="eval_a", max_drop=0.021)], file) is None
    assert lost([GateConfig(metric="eval_a", max_rise=0)], file) is None
    found = lost([GateConfig(metric="eval_a", max_drop=0.019)], file)
    assert found == (
        "eval.gate: eval_a was 0.6 before training and is 0.58 after step 4 (max_drop 0.019); the "
        "run is saved"
    )
    assert lost([GateConfig(metric="eval_b", max_rise=2)], file) is None
    found = lost([GateConfig(metric="eval_b", max_rise=1)], file)
    assert found is not None
    assert "eval_b was 3 before training and is 5 after step 4 (max_rise 1.0)" in found
    for bound in ({"max_drop": 0}, {"max_rise": 0}):
        assert lost([GateConfig(metric="eval_c", **bound)], file) is None


def test_a_gate_judges_the_checkpoint_that_the_run_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With early stopping that is the best one, not the last."""
    accuracy = {0: 0.6, 3: 0.1, 6: 0.6}
    step = iter([0, *accuracy])  # the first call is to see which metrics there are
    monkeypatch.setattr(
        "posttrain.runs.evaluation.evaluate_loss",
        lambda *a: {"eval_loss": float(now := next(step)), "eval_accuracy": accuracy[now]},
    )
    data = {"name": "word_problems", "split": "test", "options": {"num_rows": 5}}
    gate = [{"metric": "eval_accuracy", "max_drop": 0.1}]
    given = tree(tmp_path, data=data, tasks=[], gate=gate)
    given["trainer"]["early_stopping"] = {"metric": "eval_loss", "mode": "min", "patience": 2}
    with pytest.raises(ValueError, match=r"was 0\.6 before training and is 0\.1 after step 3"):
        run(given)


@pytest.mark.parametrize(
    ("before", "now", "bound"),
    [(0.8, 0.7, {"max_drop": 0.1}), (0.1, 0.3, {"max_rise": 0.2}), (0.5, 0.5, {"max_drop": 0})],
)
def test_a_gate_lets_through_what_it_says(
    before: float, now: float, bound: dict[str, float], tmp_path: Path
) -> None:
    """0.8 - 0.7 is more than 0.1 in floats."""
    file = tmp_path / "metrics.jsonl"
    for value, holds in ((now, True), (2 * now - before, before == now)):
        steps = [{"step": 0, "eval_a": before}, {"step": 4, "eval_a": value}]
        file.write_text("".join(f"{json.dumps(line)}\n" for line in steps))
        assert (lost([GateConfig(metric="eval_a", **bound)], file) is None) == holds


@pytest.mark.parametrize("keys", [{}, {"max_drop": 0.1, "max_rise": 0.1}, {"max_drop": -0.1}])
def test_a_gate_has_one_bound(keys: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"give max_drop|greater than or equal to 0"):
        GateConfig(metric="eval_a", **keys)


@pytest.mark.parametrize(
    ("score", "noted"),
    [("1.0", False), ("-1.0", False), ("0.5", True), ("Score(0.5, 'wrong')", False)],
)
def test_partial_credit_without_a_verdict_is_noted(
    score: str, noted: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reward = tmp_path / "reward.py"
    reward.write_text(
        "from posttrain.rewards.score import Score\n"
        f"def reward(prompts, completions, completion_ids, **c): return [{score} for _ in prompts]"
    )
    made = tiny.run_config(tmp_path, "sft", eval_steps=2, max_steps=4)
    made |= {
        "reward": {"type": "custom", "path": str(reward)},
        "eval": {"max_samples": 3, "max_new_tokens": 4, "generate": True},
    }
    run(made)
    out = capfd.readouterr().out
    assert out.count("note: eval_accuracy counts every score above 0 as correct") == noted
