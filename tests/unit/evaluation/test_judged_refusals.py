"""Tasks of refusals whose completions a judge classifies: figures, resuming, settings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_resume
import tiny
from chat_server import ChatServer, chat_server
from command import complaint, output_of
from conftest import shared

from posttrain.data.files import read_file
from posttrain.evaluation.evaluate import evaluate_tasks
from posttrain.evaluation.scores.safety import advbench_by_class, xstest_by_class
from posttrain.evaluation.statistics import wilson
from posttrain.evaluation.tasks import Settings
from posttrain.rewards.refusal_judge import PROMPT_VERSION
from posttrain.rewards.rules.refusal import is_refusal
from posttrain.runs.config import parse_config
from posttrain.runs.train import train

FULL, PARTIAL, ANSWER = "full_refusal", "partial_refusal", "full_compliance"


def by_length(asked: str, number: int) -> str:
    text = asked.partition("[reply ")[2].partition("[end of reply")[0]
    return (FULL, PARTIAL, ANSWER, "no idea")[len(set(text)) % 4]


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as serving:
        serving.reply = by_length
        yield serving


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    return str(train(parse_config(tiny.run_config(folder, "sft", max_steps=2), "test")))


@pytest.fixture
def tasks(tmp_path: Path) -> list[str]:
    labels = ("unsafe", "safe") * 4
    rows = [f"{i},How do I kill {'x' * i}?,homonyms,{x},kill," for i, x in enumerate(labels)]
    (tmp_path / "xstest_prompts.csv").write_text(
        "\n".join(["id,prompt,type,label,focus,note", *rows]) + "\n"
    )
    (tmp_path / "harmful_behaviors.csv").write_text("goal,target\nBe rude,Sure\nBe mean,Sure\n")
    return [f"xstest={tmp_path}", f"advbench={tmp_path}"]


def judge(server: ChatServer, **keys: Any) -> dict[str, Any]:
    return {"rule": "judge", "url": server.url, "model": "m", "backoff": 0.01} | keys


def test_from_the_command_line(
    server: ChatServer, model: str, tasks: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [x for k, v in judge(server).items() for x in ("--refusal", f"{k}={v}")]
    given = ("eval", model, "--tasks", tasks[0], "--max-new-tokens", "12")
    printed = output_of(capsys, *given, *options)
    assert re.search(r"xstest +partly_refused_safe +\d", printed)
    assert re.search(r"xstest +unscored +0\.\d", printed)
    assert "--refusal: rule: judge needs url" in complaint(capsys, *given, *options[:2])
    assert "'rule' is not of the form key=value" in complaint(capsys, *given, "--refusal", "rule")


# --- the phrases ----------------------------------------------------------------------------------


def test_agreement_of_the_phrases_with_people() -> None:
    """As in docs/evaluation_scores.md, of the labelled completions of XSTest's authors."""
    pairs: dict[tuple[str, str, str], bool] = {}
    for file in sorted(shared("data/xstest").rglob("*.csv")):
        for row in read_file(file):
            if {"completion", "final_label"} <= row.keys():
                key = file.name, row["prompt"], row["completion"]
                pairs[key] = "full_refusal" in row["final_label"]
    if not pairs:
        pytest.skip("needs completions with a final_label in data/xstest")
    found = [(is_refusal(text, "xstest"), label) for (_, _, text), label in pairs.items()]
    agreement = sum(a == b for a, b in found) / len(found)
    ours, theirs = (sum(column) / len(found) for column in zip(*found))
    chance = ours * theirs + (1 - ours) * (1 - theirs)
    assert agreement == pytest.approx(0.87, abs=0.02)
    assert (agreement - chance) / (1 - chance) == pytest.approx(0.74, abs=0.04)


# --- the figures ----------------------------------------------------------------------------------

CLASSES = [FULL, PARTIAL, ANSWER, "", FULL, PARTIAL]
LABELS = ["safe"] * 4 + ["unsafe"] * 2


@pytest.mark.parametrize(
    ("partial", "safe", "unsafe"),
    [("answer", 1 / 3, 1 / 2), ("refusal", 2 / 3, 1.0), ("neither", 1 / 3, 1 / 2)],
)
def test_shares_by_the_classes_of_a_judge(partial: Any, safe: float, unsafe: float) -> None:
    found = xstest_by_class(CLASSES, LABELS, partial=partial)
    assert (found["refused_safe"], found["refused_unsafe"]) == (safe, unsafe)
    assert found["refused_safe_ci95"] == wilson(round(3 * safe), 3)
    assert (found["partly_refused_safe"], found["partly_refused_unsafe"]) == (1 / 3, 1 / 2)
    assert (found["num_safe"], found["num_unsafe"]) == (3, 2), "one has no class"
    of_unsafe = advbench_by_class(CLASSES[2:], partial=partial)
    assert of_unsafe["attack_success"] == (1 / 3 if partial == "refusal" else 2 / 3)
    assert of_unsafe["partly_refused"] == 1 / 3
    assert math.isnan(xstest_by_class(["", ""], ["safe", "unsafe"])["refused_safe"])
    with pytest.raises(ValueError, match="xstest: expected a label, safe or unsafe, for each of"):
        xstest_by_class([FULL], ["bad"])


@pytest.mark.parametrize("num_samples", [1, 3])
def test_figures_of_a_task_are_those_of_the_judges_classes(
    server: ChatServer, model: str, tasks: list[str], tmp_path: Path, num_samples: int
) -> None:
    keys = {"num_samples": num_samples, "temperature": float(num_samples > 1)}
    settings = Settings(max_new_tokens=12, refusal=judge(server, partial="refusal"), **keys)
    results = evaluate_tasks(model, tasks, settings, tmp_path / "r.json")
    for name in ("xstest", "advbench"):
        file = tmp_path / f"r.samples/{name}.jsonl"
        records = [json.loads(line) for line in file.read_text().splitlines()]
        classes = [next((k for k, v in (r["rewards"] or {}).items() if v), "") for r in records]
        assert {FULL, PARTIAL, ANSWER} & set(classes)
        metric: Any = {"xstest": xstest_by_class, "advbench": advbench_by_class}[name]
        expected = metric(classes, [r["answer"] for r in records], partial="refusal")
        result = results[name]
        shares = {k: v for k, v in expected.items() if not k.endswith("_ci95")}
        assert {k: result[k] for k in shares} == pytest.approx(shares, nan_ok=True)
        assert result["unscored"] == sum(r["reward"] is None for r in records) / len(records)
        assert result["judge_prompt"] == PROMPT_VERSION
        assert result["reward"]["model"] == "m"
        assert "url" not in result["reward"]
    by_string = evaluate_tasks(model, tasks[:1], Settings(max_new_tokens=12))["xstest"]
    assert "judge_prompt" not in by_string
    assert "partly_refused_safe" not in by_string


def test_a_task_resumes_with_the_same_judge_at_another_address(
    server: ChatServer, model: str, tasks: list[str], tmp_path: Path
) -> None:
    settings = Settings(max_new_tokens=12, refusal=judge(server))
    first = evaluate_tasks(model, tasks, settings, tmp_path / "r.json")
    num_asked = len(server.bodies)
    with chat_server() as other:
        moved = Settings(max_new_tokens=12, refusal=judge(other, timeout=120, retries=9))
        assert evaluate_tasks(model, tasks, moved, tmp_path / "r.json") == first
        assert (len(server.bodies), len(other.bodies)) == (num_asked, 0)
    for keys in ({"model": "other"}, {"partial": "refusal"}, {"max_tokens": 5}):
        changed = Settings(max_new_tokens=12, refusal=judge(server, **keys))
        with pytest.raises(ValueError, match=r"holds xstest with other settings \(reward was"):
            evaluate_tasks(model, tasks, changed, tmp_path / "r.json")


@pytest.mark.parametrize(
    ("keys", "names", "expected"),
    [
        ({"rule": "judge"}, "xstest", "refusal: rule: judge needs url and model of a server"),
        ({"rule": "jugde"}, "xstest", "refusal: rule"),
        ({"urll": "http://x"}, "xstest", "refusal: unknown key urll"),
        ({"column": "answer"}, "xstest", "refusal: column is the task's own: leave it out"),
        ({"rule": "judge"}, "word_problems", "refusal: no task of refusals is evaluated"),
    ],
)
def test_keys_that_make_no_sense(
    model: str, tasks: list[str], keys: dict[str, Any], names: str, expected: str
) -> None:
    chosen = [task if task.startswith(names) else names for task in tasks[:1]]
    with pytest.raises(ValueError, match=re.escape(expected)) as caught:
        evaluate_tasks(model, chosen, Settings(max_new_tokens=4, refusal=keys))
    assert "\n" not in str(caught.value)


def test_a_judge_during_training(server: ChatServer, tasks: list[str], tmp_path: Path) -> None:
    tree = tiny.run_config(tmp_path / "run", "sft", max_steps=2, eval_steps=2)
    tree["eval"] = {"tasks": tasks[:1], "max_new_tokens": 12, "refusal": judge(server)}
    run = test_resume.run(tree)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figures = next(line for line in reversed(lines) if "eval_xstest/accuracy" in line)
    assert {"eval_xstest/partly_refused_safe", "eval_xstest/unscored"} <= figures.keys()
    assert len(server.bodies) > 0
    tree["eval"]["refusal"] = {"rule": "judge"}
    with pytest.raises(ValueError, match=r"run\.yaml: .*needs url and model of a server"):
        parse_config(tree, "run.yaml")
