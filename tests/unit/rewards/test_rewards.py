"""What every reward shares: how it is called and checked; and the weighted sum of several."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_resume
import tiny
import torch
from pydantic import TypeAdapter

from posttrain.common.metrics import add_metrics, combine
from posttrain.evaluation.generation import Asking, count
from posttrain.rewards import REWARDS
from posttrain.rewards.base import RewardFailure, columns_of
from posttrain.rewards.build import RewardSection, build_reward, check_columns
from posttrain.rewards.score import Score, is_correct, parts_of, verdict_of
from posttrain.rewards.scoring import score
from posttrain.rollout.metrics import rollout_metrics
from posttrain.rollout.sampler import Rollout, SamplingParams
from posttrain.runs.score import score_file

MATH = {"type": "math_correctness"}


def make(**settings: Any) -> Any:
    """A reward from its YAML section, through the config's own type."""
    return build_reward(TypeAdapter(RewardSection).validate_python(settings))


def scores(reward: Any, completions: list[str], ids: Any = None, **columns: list[Any]) -> list[Any]:
    rows = [{name: values[i] for name, values in columns.items()} for i in range(len(completions))]
    ids = [[1] * len(text) for text in completions] if ids is None else ids
    return score(reward, ["?"] * len(completions), completions, ids, rows)


def custom(tmp_path: Path, body: str, name: str = "reward", is_async: bool = False) -> Any:
    """The settings of a custom reward with this body."""
    file = tmp_path / f"{name}.py"
    head = f"def {name}(prompts, completions, completion_ids, **columns):\n"
    file.write_text("import asyncio, time\n" + "async " * is_async + head + f"    {body}\n")
    return {"type": "custom", "path": str(file), "function": name}


# --- every reward of the registry -----------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "math_correctness": {},
    "exact_match": {},
    "classification": {"labels": ["18", "81"], "column": "answer"},
    "format": {"pattern": "A: .*"},
    "length": {"kind": "cosine", "max_length": 9, "reward": MATH},
    "repetition": {},
    "refusal": {},
    "weighted": {"rewards": [MATH, {"type": "format", "pattern": "A: .*"}]},
    "custom": {},
    "reward_model": {},
    "http": {},
    "judge": {},
}
ELSEWHERE = {
    "reward_model": "test_reward_model.py",
    "http": "test_http_reward.py",
    "judge": "test_judge_reward.py",
    "refusal": "test_safety.py",
}


def test_every_reward_has_a_test() -> None:
    missing = [name for name in REWARDS if name not in SETTINGS]
    assert missing in ([], ["code_execution"])  # which has a file of tests of its own


@pytest.mark.parametrize("name", sorted(SETTINGS.keys() - ELSEWHERE.keys()))
def test_every_reward_prefers_the_right_answer(name: str, tmp_path: Path) -> None:
    settings = SETTINGS[name] | {"type": name}
    if name == "custom":
        settings |= custom(tmp_path, "return [float(c == 'A: 18') for c in completions]")
    reward = make(**settings)
    bad = "81 81 81 81 81" if name in ("repetition", "format") else "A: 81"
    good, worse = scores(reward, ["A: 18", bad], answer=["18", "18"])
    assert good > worse
    assert scores(reward, ["A: 18", bad], answer=["18", "18"]) == [good, worse]
    assert scores(reward, [bad], answer=["18"]) == [worse], "a score depends on the others"
    assert scores(reward, []) == []


# --- what a reward may return ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return [1.0]", "the reward returned 1 scores for 3 rows: it must return one"),
        ("return []", "returned 0 scores for 3 rows"),
        ("return [0, 1, 2, 3]", "returned 4 scores for 3 rows"),
        ("return [0, float('nan'), 1]", r"returned nan \(float\) for row 2.*completion 'b'"),
        ("return [0, 0, float('inf')]", r"returned inf \(float\) for row 3"),
        ("return ['1.0', 0, 0]", r"returned 1.0 \(str\) for row 1: a score is a finite number"),
        ("return [[1], 0, 0]", r"returned \[1\] \(list\) for row 1"),
        ("pass", "the reward returned NoneType: it must return a list"),
        ("return 1.0", "returned float: it must return a list"),
        ("return 'abc'", "returned str: it must return a list"),
        ("return {1: 1, 2: 2, 3: 3}", "returned dict: it must return a list"),
        ("return {1.0, 2.0, 3.0}", "returned set: it must return a list"),  # it has no order
        ("return bytearray(b'abc')", "returned bytearray: it must return a list"),
        ("return [0, 10**400, 0]", r"\(int\) for row 2: a score is a finite number"),
        ("return [10**5000, 0, 0]", r"a value of type int \(int\) for row 1: a score is a fin"),
        ("return ['a\\n\\x1b[1mb', 0, 0]", r"returned a .\[1mb \(str\) for row 1"),
        ("return (1 / n for n in (1, 0, 2))", "generator, which cannot be read as a list .Zero"),
        ("return iter(lambda: 1.0, 2.0)", "returned 4 scores for 3 rows"),  # without an end
        ("import numpy; return numpy.array(1.0)", "ndarray, which cannot be read as a list"),
        ("raise SystemExit(3)", "the reward failed on row 1 .RuntimeError: it called exit with 3"),
        ("raise ValueError('a\\nb' + 'c' * 9999)", "the reward failed on row 1 .ValueError: a bc"),
    ],
)
@pytest.mark.parametrize("is_async", [False, True])
def test_a_result_of_the_wrong_form(
    body: str, expected: str, is_async: bool, tmp_path: Path
) -> None:
    reward = make(**custom(tmp_path, body, is_async=is_async))
    with pytest.raises(RewardFailure, match=expected) as caught:
        scores(reward, ["a", "b", "c"])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    assert issubclass(RewardFailure, ValueError), "the command line shows these in one line"


def test_an_async_reward_that_cancels_itself(tmp_path: Path) -> None:
    reward = make(**custom(tmp_path, "raise asyncio.CancelledError", is_async=True))
    with pytest.raises(RewardFailure, match=r"failed on row 1 \(RuntimeError: it was cancelled"):
        scores(reward, ["a"])
    parts = [MATH, custom(tmp_path, "raise SystemExit(3)", is_async=True)]
    with pytest.raises(RewardFailure, match="it called exit with 3, raised by custom"):
        scores(make(type="weighted", rewards=parts), ["A: 7"], answer=["7"])


def test_numbers_of_other_libraries_are_numbers_and_tensors_are_not() -> None:
    def reward(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Any:
        return iter([np.float32(0.5), np.float64(2), np.int64(3), True, 4, None])

    found = scores(reward, list("abcdef"))
    assert found == [0.5, 2.0, 3.0, 1.0, 4.0, None]
    assert all(isinstance(value, float) for value in found[:5])
    with pytest.raises(RewardFailure, match=r"\(Tensor\) for row 1"):
        scores(lambda **_: torch.ones(2), ["a", "b"])


@pytest.mark.parametrize("is_async", [False, True])
def test_an_exception_names_the_row(is_async: bool, tmp_path: Path) -> None:
    body = "return [1 / columns['n'][i] for i in range(len(completions))]"
    reward = make(**custom(tmp_path, body, is_async=is_async))
    assert scores(reward, ["a", "b"], n=[1, 2]) == [1.0, 0.5]
    with pytest.raises(ValueError, match=r"row 2 \(ZeroDivisionError: .*completion 'b'.*'n': 0"):
        scores(reward, ["a", "b", "c"], n=[1, 0, 2])


def test_an_async_reward_works_where_a_loop_runs_already(tmp_path: Path) -> None:
    reward = make(**custom(tmp_path, "return [0.5]", is_async=True))

    async def notebook() -> list[Any]:
        return scores(reward, ["a"])

    assert asyncio.run(notebook()) == [0.5]


def test_a_failure_that_says_all_is_not_repeated_row_by_row() -> None:
    calls = []

    def reward(**given: Any) -> Any:
        calls.append(given)
        raise RewardFailure("the server is gone")

    with pytest.raises(RewardFailure, match="the server is gone"):
        scores(reward, ["a", "b", "c"])
    assert len(calls) == 1


# --- columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({"type": "exact_match"}, ["answer"]),
        ({"type": "exact_match", "column": "gold"}, ["gold"]),
        ({"type": "classification", "labels": ["a", "b"], "column": "verdict"}, ["verdict"]),
        ({"type": "length", "kind": "penalty", "max_length": 2, "cache_length": 1}, []),
        ({"type": "length", "kind": "cosine", "max_length": 2, "reward": MATH}, ["answer"]),
        (
            {
                "type": "weighted",
                "rewards": [
                    MATH,
                    {"type": "exact_match", "column": "gold"},
                    {"type": "repetition"},
                    {"type": "exact_match", "name": "again"},
                ],
            },
            ["answer", "gold"],
        ),
    ],
)
def test_columns_are_known_before_anything_runs(
    settings: dict[str, Any], needed: list[str]
) -> None:
    reward = make(**settings)
    assert columns_of(reward) == needed
    row = dict.fromkeys(needed, "x") | {"prompt": "?"}
    check_columns(reward, [row], "data")
    for column in needed:
        rows = [row, {name: value for name, value in row.items() if name != column}]
        with pytest.raises(ValueError, match=f"data, row 2: the reward needs the column {column};"):
            check_columns(reward, rows, "data")


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("completion", "is not passed to a reward as a column"),
        ("prompts", "is not passed to a reward as a column"),
        ("gold label", "rename it with data.columns"),
        ("class", "rename it with data.columns"),
    ],
)
def test_column_names_that_no_reward_can_get(column: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        make(type="exact_match", column=column)


# --- weighted -------------------------------------------------------------------------------------


def test_weighted_by_hand(tmp_path: Path) -> None:
    reward = make(
        type="weighted",
        rewards=[
            {"type": "format", "pattern": "so.*", "weight": -0.5},
            MATH | {"weight": 2},
            custom(tmp_path, "return [None, 0.25, 0.25, None]", "half")
            | {"name": "half", "weight": 4.0},
        ],
    )
    found = scores(reward, ["so\nA: 7", "A: 7", "so\nA: 8", "A: 8"], answer=["7", "7", "7", ""])
    # -0.5 * format + 2 * correct + 4 * half, without what is None
    assert found == [1.5, 3.0, 0.5, 0.0]
    assert [verdict_of(s) for s in found] == ["correct", "correct", "wrong", None]
    assert [parts_of(s) for s in found] == [
        {"format": 1.0, "math_correctness": 1.0, "half": None},
        {"format": 0.0, "math_correctness": 1.0, "half": 0.25},
        {"format": 1.0, "math_correctness": 0.0, "half": 0.25},
        {"format": 0.0, "math_correctness": None, "half": None},
    ]
    assert all(type(v) is float for s in found for v in (parts_of(s) or {}).values() if v)


def test_weighted_is_none_only_where_every_part_is(tmp_path: Path) -> None:
    nothing = custom(tmp_path, "return [None, None]") | {"name": "nothing"}
    reward = make(type="weighted", rewards=[nothing, MATH])
    assert scores(reward, ["A: 7", "A: 7"], answer=["", "8"]) == [None, 0.0]


def test_the_first_part_with_a_verdict_gives_it() -> None:
    labels = {"type": "classification", "labels": ["yes", "no"], "column": "answer"}
    for rewards, expected in (
        ([labels, MATH], "no_label"),
        ([MATH, labels], "unparseable_prediction"),
    ):
        reward = make(type="weighted", rewards=[{"type": "repetition"}, *rewards])
        (found,) = scores(reward, ["A: maybe"], answer=["no"])
        assert verdict_of(found) == expected


def test_async_parts_wait_together_and_sync_ones_come_first(tmp_path: Path) -> None:
    slow = "t = time.perf_counter(); await asyncio.sleep(0.2); return [t, time.perf_counter()]"
    parts = [custom(tmp_path, slow, name, is_async=True) | {"name": name} for name in "abc"]
    sync = custom(tmp_path, "return [time.perf_counter()] * 2", "sync") | {"name": "sync"}
    reward = make(type="weighted", rewards=[*parts, sync])
    started, ended = map(parts_of, scores(reward, ["x", "y"]))
    assert started is not None
    assert ended is not None
    assert list(started) == ["a", "b", "c", "sync"]
    assert ended["sync"] <= min(started[name] for name in "abc")  # type: ignore[type-var]
    assert max(started[name] for name in "abc") < min(ended[name] for name in "abc")  # type: ignore[type-var]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_failing_part_is_named(is_async: bool, tmp_path: Path, recwarn: Any) -> None:
    body = "return [1 / columns['n'][i] for i in range(len(completions))]"
    part = custom(tmp_path, body, is_async=is_async) | {"name": "inverse"}
    other = custom(tmp_path, "return [0.0] * len(completions)", "other", True) | {"name": "other"}
    reward = make(type="weighted", rewards=[other, part])
    with pytest.raises(ValueError, match=r"row 2 \(ZeroDivision.*, raised by inverse; "):
        scores(reward, ["a", "b"], n=[1, 0])
    part = custom(tmp_path, "return [float('nan')]", is_async=is_async) | {"name": "broken"}
    with pytest.raises(RewardFailure, match="broken returned nan"):
        scores(make(type="weighted", rewards=[other, part]), ["a"])
    gc.collect()
    assert [w for w in recwarn if "never awaited" in str(w.message)] == []


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([MATH, MATH], "two parts of the weighted reward are called math_correctness"),
        ([MATH | {"name": "x"}, {"type": "repetition", "name": "x"}], "are called x"),
        ([], "at least 1"),
        ([MATH | {"name": "a b"}], "should match pattern"),
        ([MATH | {"weight": math.nan}], "finite"),
        ([{"type": "weighted", "rewards": [MATH]}], "type is not known"),
    ],
)
def test_weighted_settings_that_make_no_sense(rewards: list[Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        make(type="weighted", rewards=rewards)


# --- scores with parts, and what is logged --------------------------------------------------------


def test_a_score_survives_pickling_with_its_parts() -> None:
    value = pickle.loads(pickle.dumps(Score(1.5, "wrong", {"a": 1.5, "b": None})))
    assert (value, value.verdict, value.parts) == (1.5, "wrong", {"a": 1.5, "b": None})
    assert json.dumps(value) == "1.5"
    assert "'a': 1.5" in repr(value)
    assert verdict_of(1.0) is None
    assert parts_of(1.0) is None


def test_parts_are_logged_apart_over_all_ranks() -> None:
    def metrics(values: list[float | None]) -> Any:
        found = [None if v is None else Score(2 * v, None, {"f": v, "g": None}) for v in values]
        rollouts = [Rollout([1], [2], [0.0], "stop", 0) for _ in values]
        return rollout_metrics(rollouts, [*found], list(range(len(values))))

    combined = combine([metrics([0.0, 1.0, None]), metrics([4.0]), metrics([None])])
    assert combined["rewards/f/mean"] == pytest.approx(5 / 3)
    assert combined["rewards/f/std"] == pytest.approx(np.std([0.0, 1.0, 4.0]))
    assert combined["reward"] == pytest.approx(10 / 3)
    assert combined["reward_std"] == pytest.approx(np.std([0.0, 2.0, 8.0]))
    assert [name for name in combined if "square" in name or "/g/" in name] == []
    totals = metrics([1.0])
    add_metrics(totals, metrics([3.0]))
    assert combine([totals])["rewards/f/mean"] == 2.0


def test_a_row_without_verdict_among_judged_ones_counts_in_no_share() -> None:
    # a weighted reward still scores a row whose gold answer can not be read: for its format, say
    def accuracy(*found: Score) -> float:
        records = [
            {
                "id": str(i),
                "reward": float(value),
                "verdict": value.verdict,
                "correct": is_correct(value),
                "finish_reason": "stop",
                "num_tokens": 3,
            }
            for i, value in enumerate(found)
        ]
        params = SamplingParams(8, (1,))
        return count(records, Asking("rows", None, params, lambda **_: []))["accuracy"]  # type: ignore[arg-type]

    assert accuracy(Score(1.5, "correct"), Score(0.5, "wrong"), Score(0.5)) == 0.5
    assert accuracy(Score(0.5), Score(0.0)) == 0.5


def test_a_run_logs_the_parts(tmp_path: Path) -> None:
    tree = tiny.run_config(tmp_path, "grpo", max_steps=2)
    tree["reward"] = {
        "type": "weighted",
        "rewards": [tree["reward"] | {"name": "variety"}, {"type": "repetition", "weight": 0.5}],
    }
    run = test_resume.run(tree)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines[:2]:
        assert line["reward"] == pytest.approx(
            line["rewards/variety/mean"] + 0.5 * line["rewards/repetition/mean"]
        )
        assert line["rewards/variety/std"] > 0
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    sampled = [row for row in rows if row["kind"] == "rollout"]
    assert len(sampled) == 2 * 4 * 4
    for row in sampled:
        parts = row["rewards"]
        assert row["reward"] == pytest.approx(parts["variety"] + 0.5 * parts["repetition"])


def test_posttrain_score_takes_a_list_and_shows_the_parts(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"completion": "A: 7", "answer": "7"}, {"completion": "A: 8!", "answer": "7"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    option = "rewards=[{type: math_correctness}, {type: format, pattern: '.*!', weight: 0.5}]"
    output = tmp_path / "scored.jsonl"
    lines = list(score_file("weighted", file, [option], output))
    assert [line.split() for line in lines[:2]] == [["1", "1", "correct"], ["2", "0.5", "wrong"]]
    assert "format: rows 2  mean 0.5000" in lines
    scored = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["rewards"]["format"] for row in scored] == [0.0, 1.0]
    assert Counter(row["verdict"] for row in scored) == {"correct": 1, "wrong": 1}
    with pytest.raises(ValueError, match="counts tokens: it works in training and evaluation"):
        list(score_file("repetition", file, [], None))
    with pytest.raises(ValueError, match=r"rewards\.0\.type 'fromat' is not known; did you"):
        list(score_file("weighted", file, ["rewards=[{type: fromat}]"], None))


def test_a_file_of_ones_own_is_read_as_it_is_now(tmp_path, monkeypatch):
    """No __pycache__ beside it, and a dataclass in it finds its module."""
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    for value in (0.25, 0.75):
        file = tmp_path / "mine.py"
        file.write_text(
            "from __future__ import annotations\nfrom dataclasses import dataclass\n"
            f"@dataclass\nclass Score:\n    value: float = {value}\n"
            "def reward(prompts, completions, completion_ids, **columns):\n"
            "    return [Score().value for _ in completions]\n"
        )
        reward = make(type="custom", path=str(file))
        assert score(reward, ["p"], ["c"], [[1]], [{}]) == [value]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]
