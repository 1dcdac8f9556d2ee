"""`posttrain score`, rewards from the user's file, and `posttrain pipeline`."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import Capture, complaint, output_of, recipe, state

REWARD = """
def reward(prompts, completions, completion_ids, answer, **columns):
    if "boom" in completions:
        raise KeyError("no such thing")
    return [None if a == "?" else float(a in c) for a, c in zip(answer, completions)]

def short(prompts, completions, completion_ids, **columns):
    return [0.5]
"""
ANSWERS = [
    {"completion": "so it is\n#### 2", "answer": "2", "extra": "kept"},
    {"completion": "#### 3", "answer": "2", "extra": "kept"},
    {"completion": "I do not know", "answer": "2", "extra": "kept"},
]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("POSTTRAIN_TRACEBACK", raising=False)


def jsonl(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def reward_file(folder: Path) -> Path:
    file = folder / "reward.py"
    file.write_text(REWARD)
    return file


def test_score_prints_verdicts_and_writes_them(tmp_path: Path, capsys: Capture) -> None:
    written = tmp_path / "new" / "scored.jsonl"
    file = jsonl(tmp_path, ANSWERS)
    out = output_of(capsys, "score", "math_correctness", file, "--output", written)
    assert [line.split() for line in out.splitlines()[:3]] == [
        ["1", "1", "correct"],
        ["2", "0", "wrong"],
        ["3", "0", "unparseable_prediction"],
    ]
    assert "rows 3  mean 0.3333" in out
    assert "correct 1" in out
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    assert [row["score"] for row in rows] == [1.0, 0.0, 0.0]
    assert [row["verdict"] for row in rows] == ["correct", "wrong", "unparseable_prediction"]
    assert all(row["extra"] == "kept" for row in rows)


def test_score_with_options(tmp_path: Path, capsys: Capture) -> None:
    file = jsonl(tmp_path, ANSWERS)
    out = output_of(capsys, "score", "math_correctness", file, "positive=2.5", "negative=-1")
    assert [line.split()[1] for line in out.splitlines()[:3]] == ["2.5", "-1", "-1"]


@pytest.mark.parametrize(
    ("reward", "options", "expected"),
    [
        ("math_correctnes", [], "no reward 'math_correctnes'; did you mean math_correctness?"),
        ("math_correctness", ["positiv=1"], "unknown key positiv: did you mean positive?"),
        ("math_correctness", ["positive=much"], "positive: input should be a valid number"),
        ("math_correctness", ["positive"], "option 'positive' is not of the form key=value"),
        ("math_correctness", ["positive=[1"], "the value is not valid YAML"),
        ("custom", [], "path is missing"),
        ("custom", ["path=nowhere.py"], "reward.path: no Python file nowhere.py"),
    ],
)
def test_score_refuses_in_one_line(
    tmp_path: Path, capsys: Capture, reward: str, options: list[str], expected: str
) -> None:
    assert expected in complaint(capsys, "score", reward, jsonl(tmp_path, ANSWERS), *options)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([*ANSWERS, {"completion": "x"}], "row 4: the reward needs the column answer"),
        ([{"answer": "2"}], "row 1: expected a text column completion, got answer"),
        ([{"answer": "2", "completion": 2}], "row 1: expected a text column completion"),
        ([], "no rows"),
    ],
)
def test_score_names_the_malformed_row(
    tmp_path: Path, capsys: Capture, rows: list[dict[str, Any]], expected: str
) -> None:
    file = jsonl(tmp_path, rows)
    written = tmp_path / "scored.jsonl"
    text = complaint(capsys, "score", "math_correctness", file, "--output", written)
    assert expected in text
    assert str(file) in text
    assert not written.exists()


def test_score_with_a_custom_reward(tmp_path: Path, capsys: Capture) -> None:
    rows = [{"completion": "a 2 b", "answer": "2"}, {"completion": "", "answer": "?"}]
    file, reward = jsonl(tmp_path, rows), reward_file(tmp_path)
    out = output_of(capsys, "score", "custom", file, f"path={reward}")
    assert [line.split() for line in out.splitlines()[:2]] == [["1", "1"], ["2", "none"]]
    assert "rows 2  mean 1.0000" in out
    assert "not applicable 1" in out
    text = complaint(capsys, "score", "custom", file, f"path={reward}", "function=rewrd")
    assert "has no function 'rewrd'; found: reward, short" in text
    text = complaint(
        capsys, "score", "custom", jsonl(tmp_path, [{"completion": "x"}]), f"path={reward}"
    )
    assert "row 1: the reward needs the column answer; found completion" in text
    assert text.endswith("(rename a column of the file)")


def test_a_reward_that_raises_names_the_row(tmp_path: Path, capsys: Capture) -> None:
    """Rows are counted as `score` prints them, and the line of the user's code is shown."""
    rows = [*ANSWERS, {"completion": "boom", "answer": "77"}]
    file, reward = jsonl(tmp_path, rows), reward_file(tmp_path)
    text = complaint(capsys, "score", "custom", file, f"path={reward}")
    assert "the reward failed on row 4 (KeyError: 'no such thing'; " in text
    assert 'line 4: raise KeyError("no such thing"))' in text
    assert "'boom'" in text
    assert "'77'" in text


def test_a_reward_of_the_wrong_length(tmp_path: Path, capsys: Capture) -> None:
    file, reward = jsonl(tmp_path, ANSWERS), reward_file(tmp_path)
    text = complaint(capsys, "score", "custom", file, f"path={reward}", "function=short")
    assert "the reward returned 1 scores for 3 rows: it must return one float or None" in text


def grpo(folder: Path, reward: dict[str, Any], **changes: Any) -> Path:
    trainer = {"type": "grpo", "max_steps": 1, "batch_size": 2, "output_dir": str(folder / "out")}
    rollout = {"group_size": 2, "max_new_tokens": 4}
    tree = {"trainer": trainer, "rollout": rollout, "reward": reward} | changes
    return recipe(folder, name="grpo.yaml", **tree)


def test_training_with_a_custom_reward(tmp_path: Path, capsys: Capture) -> None:
    file = grpo(tmp_path, {"type": "custom", "path": str(reward_file(tmp_path))})
    output_of(capsys, "train", file)
    (run,) = (tmp_path / "out").glob("grpo_*")
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 4
    assert all(s["reward"] == float(s["answer"] in s["completion"]) for s in samples)


def test_training_with_a_reward_file_that_is_missing(tmp_path: Path, capsys: Capture) -> None:
    file = grpo(tmp_path, {"type": "custom", "path": "nowhere.py"})
    for arguments in (["train", file], ["train", file, "--dry-run"]):
        assert "no Python file nowhere.py" in complaint(capsys, *arguments)
    assert not (tmp_path / "out").exists()


def test_training_whose_rows_lack_the_column_of_the_reward(tmp_path: Path, capsys: Capture) -> None:
    file = grpo(tmp_path, {"type": "math_correctness"})
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1"}\n{"prompt": "1+2"}\n')
    text = complaint(capsys, "train", file)
    assert "answer" in text
    assert not (tmp_path / "out").exists()


def pipeline(folder: Path, **changes: Any) -> Path:
    recipe(folder, name="sft.yaml")
    grpo(folder, {"type": "math_correctness"})
    split = {"path": str(folder / "rows.jsonl"), "max_samples": 3}
    tree = {
        "output_dir": str(folder / "demo"),
        "stages": [
            {"name": "first", "recipe": "sft.yaml"},
            {"name": "second", "recipe": "grpo.yaml", "set": {"trainer.seed": 1}},
        ],
        "evaluate": {
            "reward": {"type": "math_correctness"},
            "max_new_tokens": 4,
            "splits": {"sums": split, "the same": split},
        },
    }
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump(tree | changes))
    return file


def test_pipeline_of_two_stages(tmp_path: Path, capsys: Capture) -> None:
    out = output_of(capsys, "pipeline", pipeline(tmp_path), "first.trainer.max_steps=1")
    demo = tmp_path / "demo"
    summary = json.loads((demo / "summary.json").read_text())
    assert set(summary) == {"seconds", "stages"}
    assert [stage["name"] for stage in summary["stages"]] == ["first", "second"]
    for stage in summary["stages"]:
        assert set(stage) == {
            "name",
            "checkpoint",
            "accuracy",
            "ci95",
            "sampled_accuracy",
            "num_problems",
            "splits",
        }
        assert stage["num_problems"] == 6
        assert (demo / stage["name"] / stage["checkpoint"] / "checkpoint_info.json").is_file()
        assert set(stage["splits"]) == {"sums", "the same"}
        for split in stage["splits"].values():
            assert split["num_problems"] == 3
            assert split["accuracy"] == split["num_correct"] / 3
            assert split["ci95"][0] - 1e-9 <= split["accuracy"] <= split["ci95"][1] + 1e-9
    assert (demo / "report.html").is_file()
    assert "summary.json" in out
    first = yaml.safe_load((demo / "first/config.yaml").read_text())
    second = yaml.safe_load((demo / "second/config.yaml").read_text())
    assert first["trainer"]["max_steps"] == 1
    assert second["model"]["name"] == str(demo / "first")
    assert "scratch" not in second["model"]
    assert second["trainer"]["seed"] == 1
    before = (demo / "first/metrics.jsonl").read_text()
    output_of(capsys, "pipeline", tmp_path / "pipeline.yaml")  # its own runs are replaced
    assert (demo / "first/metrics.jsonl").read_text() != before


@pytest.mark.parametrize(
    ("changes", "overrides", "expected"),
    [
        ({}, ["secnd.trainer.seed=1"], "did you mean second?"),
        ({}, ["second.trainer.sed=1"], "unknown key trainer.sed: did you mean seed?"),
        ({"stages": []}, [], "stages"),
        ({"stage": []}, [], "unknown key stage: did you mean stages?"),
        ({"stages": [{"name": "a", "recipe": "x.yaml"}]}, [], "no recipe x.yaml"),
        (
            {"stages": [{"name": "a", "recipe": "sft.yaml"}] * 2},
            [],
            "stages: expected distinct names, got a, a",
        ),
        ({"stages": [{"name": "a/b", "recipe": "sft.yaml"}]}, [], "stages.0.name"),
    ],
)
def test_pipeline_refuses_before_the_first_stage(
    tmp_path: Path, capsys: Capture, changes: dict[str, Any], overrides: list[str], expected: str
) -> None:
    file = pipeline(tmp_path, **changes)
    before = state(tmp_path)
    assert expected in complaint(capsys, "pipeline", file, *overrides)
    assert state(tmp_path) == before


def test_pipeline_deletes_only_its_own_runs(tmp_path: Path, capsys: Capture) -> None:
    file = pipeline(tmp_path)
    (tmp_path / "demo/first").mkdir(parents=True)
    (tmp_path / "demo/first/thesis.txt").write_text("the only copy")
    before = state(tmp_path)
    assert "is not a run of a pipeline: move it away" in complaint(capsys, "pipeline", file)
    assert state(tmp_path) == before


def test_a_reward_in_a_file_is_custom(tmp_path: Path, capsys: Capture) -> None:
    text = complaint(capsys, "score", "my_reward.py", jsonl(tmp_path, ANSWERS))
    assert "no reward 'my_reward.py': write custom, and path=my_reward.py after the rows" in text
