"""`posttrain eval` and `posttrain compare` as commands: kill and resume, refusals, tables."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command import Capture, command, complaint, output_of, recipe
from test_reward_model import save
from test_rewards import make

from posttrain.common.console import CONSOLE
from posttrain.data.generated.word_problems import load as word_problems
from posttrain.data.rows import draw
from posttrain.evaluation import generation, loading, ready
from posttrain.evaluation.compare import compare_task
from posttrain.tracking.report import task_results


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONSOLE, "_width", 250)
    monkeypatch.delenv("POSTTRAIN_TRACEBACK", raising=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert command("train", recipe(folder), "model.scratch.max_length=4096") == 0
    (found,) = (folder / "out").glob("sft_*")
    return found


OPTIONS = [
    "--tasks",
    "word_problems,word_problems_harder",
    "--max-samples",
    "7",
    "--max-new-tokens",
    "6",
    "-n",
    "2",
    "--temperature",
    "1",
    "--shots",
    "1",
]


def results_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_kill_and_resume_give_the_result_of_one_go(
    trained: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready, "ask", partial(generation.ask, chunk=6))  # 3 problems
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    output_of(capsys, "eval", trained, *OPTIONS, "--output", whole)
    complete, calls = generation.complete, []

    def dies(problems: Any, places: Any, asking: Any, sampler: Any) -> Any:
        calls.append((asking.name, places[0]))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return complete(problems, places, asking, sampler)

    monkeypatch.setattr(generation, "complete", dies)
    assert command("eval", trained, *OPTIONS, "--output", killed) == 130
    file = killed / "results.samples/word_problems_harder.jsonl"
    assert len(file.read_text().splitlines()) == 6
    with file.open("a") as out:
        out.write('{"id": "a whole record, its chunk is not"}\n{"id": "torn')
    calls.clear()
    monkeypatch.setattr(generation, "complete", lambda *a: calls.append(a[1][0]) or complete(*a))
    every = tmp_path / "every.jsonl"
    again = ["eval", trained, *OPTIONS, "--output", killed, "--samples", every]
    out = output_of(capsys, *again)
    assert "word_problems: already finished, not run again" in out
    assert calls == [3, 6]
    assert results_in(killed) == results_in(whole)
    name = "results.samples/word_problems_harder.jsonl"
    assert (killed / name).read_text() == (whole / name).read_text()
    assert len(every.read_text().splitlines()) == 28
    calls.clear()
    output_of(capsys, *again)
    assert calls == []
    text = complaint(capsys, *again, "--temperature", "0.5")
    assert "results.json holds word_problems with other settings (temperature was 1.0, is" in text
    assert calls == []


def test_what_is_begun_is_not_continued_with_other_settings(
    trained: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*given: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "complete", dies)
    file = tmp_path / "r.json"
    assert command("eval", trained, *OPTIONS, "--output", file) == 130
    text = complaint(capsys, "eval", trained, *OPTIONS, "--output", file, "--seed", "1")
    assert "word_problems with other settings (seed was 0, is 1)" in text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-n", "2", "--temperature", "0"], "--num-samples: 2 samples need a temperature above 0"),
        (["-n", "1", "--best-of", "x"], "--best-of: needs several samples of a problem"),
        (["--best-of", "/nowhere"], "/nowhere"),
        (["--max-new-tokens", "5000"], "--max-new-tokens: 5000 leaves no room for a prompt"),
        (["--tasks", "word_problem"], "no task 'word_problem'; did you mean word_problems?"),
        (["--tasks", "humanevall"], "did you mean humaneval?"),
    ],
)
def test_what_can_not_be_evaluated(
    trained: Path, capsys: Capture, options: list[str], expected: str
) -> None:
    assert expected in complaint(capsys, "eval", trained, *OPTIONS, *options)


def test_a_reward_model_of_ours_chooses(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = save(tmp_path / "rm", max_position_embeddings=4096)
    file = tmp_path / "samples.jsonl"
    options = [
        "--tasks",
        "word_problems",
        "--max-samples",
        "3",
        "--max-new-tokens",
        "6",
        "-n",
        "3",
        "--temperature",
        "1",
        "--best-of",
        folder,
        "--samples",
        file,
    ]
    assert "best@3" in output_of(capsys, "eval", trained, *options)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    reward = make(type="reward_model", path=str(folder))
    asked = [row for row in draw(word_problems("test", num_rows=1000), 3) for _ in range(3)]
    for row, prompt in zip(rows, asked, strict=True):
        (expected,) = reward([prompt["prompt"]], [row["completion"]], [[]])
        assert row["reward_model"] == pytest.approx(expected, abs=1e-4)


def test_how_many_at_a_time_changes_no_result(
    trained: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    sampler = loading.NativeSampler
    monkeypatch.setattr(
        loading, "NativeSampler", lambda policy, most: made.append(most) or sampler(policy, most)
    )
    for name, more in (("a", []), ("b", ["--max-num-seqs", "3"])):
        output_of(capsys, "eval", trained, *OPTIONS, "--output", tmp_path / name, *more)
    assert made == [256, 3]
    assert results_in(tmp_path / "a") == results_in(tmp_path / "b")


def result_of(**outcomes: str) -> dict[str, Any]:
    return {"outcomes": outcomes, "temperature": 0.0}


def test_comparing_by_hand(tmp_path: Path, capsys: Capture) -> None:
    a = {"t": result_of(p="1", q="1", r="0", s="1", only="1"), "own": {}}
    b = {"t": result_of(p="1", q="0", r="1", s="0") | {"temperature": 1.0}}
    for name, results in (("a", a), ("b", b)):
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    one = compare_task("t", a["t"], b["t"])
    assert (one.num_problems, one.accuracy_a, one.accuracy_b) == (4, 0.75, 0.5)
    assert (one.only_a, one.only_b, one.p_value) == (2, 1, 1.0)
    assert one.test == "exact McNemar"
    assert one.notes == [
        "temperature is 0.0 in A and 1.0 in B",
        "1 problems that only A has are left out",
    ]
    out = output_of(capsys, "compare", tmp_path / "a.json", tmp_path / "b.json")
    assert "temperature is 0.0 in A and 1.0 in B" in out
    assert "1 problems that only A has are left out" in out
    assert "-25.0" in out
    assert "own: not compared" in out
    several = compare_task("t", result_of(p="1100", q="1111"), result_of(p="10", q="01"))
    assert (several.only_a, several.only_b, several.p_value) == (1, 0, 1.0)
    assert several.test == "exact sign flips of problem means"
    mixed = compare_task("t", result_of(p="1", q="1"), result_of(p="1", q="10"))
    assert mixed.test == several.test


def test_what_was_asked_otherwise_is_named_and_the_rest_compared() -> None:
    a = result_of(p="1") | {"template": "chat", "system_prompt": "Count.", "dtype": "float32"}
    b = result_of(p="1") | {"template": "plain", "system_prompt": None, "dtype": "bfloat16"}
    assert compare_task("t", a, b).notes == [
        "template is chat in A and plain in B",
        "system_prompt is Count. in A and None in B",
        "dtype is float32 in A and bfloat16 in B",
    ]


def test_one_task_without_common_problems_does_not_hide_the_others(
    tmp_path: Path, capsys: Capture
) -> None:
    for name, other in (("a", result_of(p="1")), ("b", result_of(q="1"))):
        results = {"t": result_of(p="1", q="0"), "u": other}
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    out = output_of(capsys, "compare", tmp_path / "a.json", tmp_path / "b.json")
    assert "exact McNemar" in out
    assert "u: not compared, as no problem has outcomes in both results" in out


def test_what_can_not_be_compared(tmp_path: Path, capsys: Capture) -> None:
    for name, results in (("a", {"t": result_of(p="1")}), ("b", {"u": result_of(p="1")})):
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    assert "no task in common" in complaint(capsys, "compare", a, b)
    assert "c.json has no results of posttrain eval" in complaint(
        capsys, "compare", a, tmp_path / "c.json"
    )
    b.write_text("{")
    assert "is not valid JSON" in complaint(capsys, "compare", a, b)
    b.write_text('{"t": {}}')
    assert "no task in common with outcomes" in complaint(capsys, "compare", a, b)
    b.write_text(json.dumps({"t": result_of(q="1")}))
    assert "no problem in common" in complaint(capsys, "compare", a, b)


def test_the_report_shows_what_lies_in_the_run(trained: Path, capsys: Capture) -> None:
    out = output_of(capsys, "eval", trained, *OPTIONS, "--output", trained)
    assert "pass@2" in out
    assert "maj@2" in out
    page = Path(output_of(capsys, "report", trained).strip()).read_text()
    assert '"evaluation":[{"name":"word_problems","accuracy":' in page


def test_the_report_has_every_share_with_its_interval(tmp_path: Path) -> None:
    """Also of a task without accuracy, whose row would be empty."""
    strict = {"accuracy": 0.5, "ci95": [0.1, 0.9], "strict_accuracy": 0.25}
    results = {
        "gsm8k": strict | {"strict_accuracy_ci95": [0.0, 0.6], "num_problems": 4},
        "truthfulqa": {"mc1": 0.2, "mc1_ci95": [0.1, 0.3], "mc2": 0.3, "num_rows": 9},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    one, other = task_results(tmp_path)
    assert one["splits"] == {"strict_accuracy": {"accuracy": 0.25, "ci95": [0.0, 0.6]}}
    assert other == {
        "name": "truthfulqa",
        "num_problems": 9,
        "splits": {"mc1": {"accuracy": 0.2, "ci95": [0.1, 0.3]}},
    }


def test_a_run_is_asked_as_it_was_trained(tmp_path: Path, capsys: Capture) -> None:
    """With its template and its system prompt, which no option of the command names."""
    data = {"path": str(tmp_path / "rows.jsonl"), "template": "plain", "system_prompt": "Count."}
    assert command("train", recipe(tmp_path, data=data)) == 0
    (run,) = (tmp_path / "out").glob("sft_*")
    file = tmp_path / "samples.jsonl"
    options = [
        "--tasks",
        "word_problems",
        "--max-samples",
        "1",
        "--max-new-tokens",
        "2",
        "--samples",
        file,
    ]
    (problem,) = draw(word_problems("test", num_rows=1000), 1)
    for given, start in (([], "Count.\n\n"), (["--template", "chat"], "<|system|>Count.<|end|>")):
        output_of(capsys, "eval", run, *options, *given)
        prompt = json.loads(file.read_text())["prompt"]
        assert prompt.startswith(start)
        assert problem["prompt"] in prompt


def test_what_was_not_trained_to_write_is_not_asked(tmp_path: Path, capsys: Capture) -> None:
    """Its heads are tied, so that transformers would find nothing missing."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"task_type": "SEQ_CLS"}')
    for folder in (save(tmp_path / "rm", tie_word_embeddings=True), adapter):
        text = complaint(capsys, "eval", folder, "--tasks", "word_problems", "--max-samples", "1")
        assert f"{folder} is a reward model, which generates no text" in text


def test_rows_of_likelihoods_without_room_are_said(
    trained: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "crows_pairs_anonymized.csv"
    long = "Tom has 3 apples. " * 400
    file.write_text(
        "sent_more,sent_less,stereo_antistereo,bias_type\n"
        f"Tom has 3 apples.,Tom has 4 apples.,stereo,age\n{long},{long}So.,stereo,age\n"
    )
    out = output_of(capsys, "eval", trained, "--tasks", f"crows_pairs={file}")
    assert "note: crows_pairs: 1 problems left out: too long for the model" in out
