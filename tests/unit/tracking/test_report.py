"""What goes into the report page: condensed curves, safe embedding, and clear errors."""

import json
import math
import re
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from posttrain.tracking.report import MAX_POINTS, MAX_SAMPLES_PER_KIND, MAX_TEXT, thin, write_report

INJECTION = "</script><!-- <img src=x onerror=alert(1)> {{script-hash}} {{data}} \ud800"


def make_run(run_dir: Path, metrics: Iterable[Any] = ({"step": 1, "loss": 2.0},)) -> Path:
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in metrics))
    return run_dir


def payload(page: Path) -> list[dict[str, Any]]:
    """The runs as the browser will read them: the data script ends at the first `</script`."""
    text = page.read_text(encoding="utf-8")
    data = text.partition('<script type="application/json" id="data">')[2]
    runs: list[dict[str, Any]] = json.loads(data.partition("</script")[0])["runs"]
    return runs


def test_thinning_keeps_ends_extremes_and_order() -> None:
    points = [(step, math.sin(step / 900)) for step in range(20_000)]
    points[7_777] = (7_777, 50.0)
    points[12_345] = (12_345, -50.0)
    kept = thin(points)
    assert len(kept) <= MAX_POINTS
    assert kept == sorted(set(kept))
    assert {points[0], points[7_777], points[12_345], points[-1]} <= set(kept)


@pytest.mark.parametrize("count", [0, 1, MAX_POINTS])
def test_short_curves_stay_whole(count: int) -> None:
    points = [(step, float(step)) for step in range(count)]
    assert thin(points) == points


def test_long_curves_come_with_an_unbiased_trend(tmp_path: Path) -> None:
    # Rare spikes: every stretch has one, so thinned points alone would double the level.
    lines = ({"step": s, "loss": 101.0 if s % 50 == 0 else 1.0} for s in range(30_000))
    curve = payload(write_report([make_run(tmp_path / "run", lines)]))[0]["series"]["loss"]
    assert sum(curve["values"]) / len(curve["values"]) > 40
    assert all(2.9 < value < 3.1 for value in curve["trend"]["values"])


def test_default_path_and_minimal_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert write_report([run]) == run / "report.html"
    [data] = payload(run / "report.html")
    assert data["name"] == "run"
    assert data["series"] == {"loss": {"steps": [1], "values": [2.0]}}
    assert (data["settings"], data["samples"], data["verdicts"]) == ({}, [], None)


def test_a_run_without_lines_yet_has_a_report(tmp_path: Path) -> None:
    [data] = payload(write_report([make_run(tmp_path / "run", [])]))
    assert (data["series"], data["last_step"]) == ({}, None)


def test_a_resumed_run_replaces_the_steps_it_repeats(tmp_path: Path) -> None:
    lines = [{"step": s, "loss": v} for s, v in [(1, 1.0), (2, 2.0), (3, 3.0), (2, 20.0)]]
    lines.insert(2, {"step": 2, "eval_loss": 5.0})
    [data] = payload(write_report([make_run(tmp_path / "run", lines)]))
    assert data["series"]["loss"] == {"steps": [1, 2, 3], "values": [1.0, 20.0, 3.0]}
    assert data["series"]["eval_loss"] == {"steps": [2], "values": [5.0]}


def test_values_that_are_not_finite_are_counted_not_drawn(tmp_path: Path) -> None:
    values = [1.0, math.nan, None, math.inf, "text", True, 3.0]
    lines = [{"step": step, "kl": value} for step, value in enumerate(values)]
    [data] = payload(write_report([make_run(tmp_path / "run", lines)]))
    assert data["series"]["kl"] == {
        "steps": [0, 6],
        "values": [1.0, 3.0],
        "gaps": {"count": 3, "first": 1},
    }


def test_verdicts_are_averaged_over_stretches_of_steps(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"step": s, "verdicts/correct": s % 2, "verdicts/wrong": 1 - s % 2} for s in range(960)
    ]
    lines += [{"step": 960 + s, "verdicts/timeout": 1.0} for s in range(240)]
    [data] = payload(write_report([make_run(tmp_path / "run", lines)]))
    assert data["series"] == {}
    assert data["verdicts"]["steps"][:2] == [[0, 9], [10, 19]]
    shares = data["verdicts"]["values"]
    assert shares["correct"] == shares["wrong"] == [0.5] * 96 + [0.0] * 24
    assert shares["timeout"] == [0.0] * 96 + [1.0] * 24


@pytest.mark.parametrize(
    "rest", [b'{"step": 2, "lo', b'{"step": 2, "text": "\xc3', b"\x00\x00\n\n"]
)
def test_a_broken_last_line_is_ignored(tmp_path: Path, rest: bytes) -> None:
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(rest)
    assert payload(write_report([run]))[0]["last_step"] == 1


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_a_broken_earlier_line_is_named(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    (run / name).write_text('{"step": 1}\n\n{"step": 2, "lo\n{"step": 3}\n')
    with pytest.raises(ValueError, match=rf"{name}:3 is not valid JSON"):
        write_report([run])


@pytest.mark.parametrize("line", ['{"loss": 1}', "[1]", '{"step": 1.5}', '{"step": true}'])
def test_a_line_without_a_step_is_named(tmp_path: Path, line: str) -> None:
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(
        ValueError, match=r'metrics\.jsonl:2 is not an object with an integer "step"'
    ):
        write_report([run])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.yaml", "a: [", "is not valid YAML"),
        ("config.yaml", "- a", "must hold a mapping"),
        ("run.json", "{", "is not valid JSON"),
        ("data.json", "{}", "must hold a JSON array"),
        ("evaluation.json", "[]", "must hold a JSON object"),
    ],
)
def test_broken_side_files_are_named_in_one_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    run = make_run(tmp_path / "run")
    (run / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name} {message}") as caught:
        write_report([run])
    assert "\n" not in str(caught.value)


def test_arguments_that_cannot_work_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    other = make_run(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no run directory given"):
        write_report([])
    with pytest.raises(ValueError, match="needs an output path"):
        write_report([run, other])
    with pytest.raises(ValueError, match=r"empty is not a run directory: it has no metrics\.jsonl"):
        write_report([tmp_path / "empty"])
    with pytest.raises(ValueError, match="given twice"):
        write_report([run, tmp_path / "other" / ".." / "run"], tmp_path / "report.html")


def test_several_runs_are_told_apart(tmp_path: Path) -> None:
    for parent, rate in [("a", 0.1), ("b", 0.2)]:
        (tmp_path / parent).mkdir()
        run = make_run(tmp_path / parent / "run")
        (run / "config.yaml").write_text(
            f"method: sft\nmodel: {{name: tiny}}\ntrainer: {{learning_rate: {rate}, hooks: []}}\n"
        )
    output = tmp_path / "new" / "both.html"
    assert write_report([tmp_path / "a" / "run", tmp_path / "b" / "run"], output) == output
    runs = payload(output)
    assert [run["name"] for run in runs] == ["a/run", "b/run"]
    assert [run["settings"]["trainer.learning_rate"] for run in runs] == ["0.1", "0.2"]
    assert runs[0]["settings"]["trainer.hooks"] == "[]"
    assert (runs[0]["method"], runs[0]["model"]) == ("sft", "tiny")


def test_the_last_evaluation_of_a_classification(tmp_path: Path) -> None:
    """A label may hold a slash; what was never counted is 0; no label is a curve of its own."""
    labels = ["no", "yes/maybe"]
    scores = {f"eval_{s}/{x}": 0.5 for s in ("precision", "recall", "f1") for x in labels}
    last = {"step": 4, "eval_f1_macro": 0.5, **scores, "eval_confusion/no/yes/maybe": 0.75}
    run = make_run(tmp_path / "run", [{"step": 2, **scores}, last, {"step": 5, "loss": 1.0}])
    [data] = payload(write_report([run]))
    assert data["classification"] == {
        "step": 4,
        "labels": labels,
        "scores": [[0.5] * 3] * 2,
        "cells": [[0, 0.75], [0, 0]],
    }
    assert data["series"].keys() == {"eval_f1_macro", "loss"}
    # of several labels there is no matrix
    several = make_run(tmp_path / "several", [{"step": 1, **scores, "eval_confusion/no/tp": 0.5}])
    assert payload(write_report([several]))[0]["classification"]["cells"] is None
    assert payload(write_report([make_run(tmp_path / "none")]))[0]["classification"] is None


def test_untrusted_text_cannot_leave_the_data(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    sample = {"step": 1, "kind": "eval", "prompt": INJECTION, "completion": "", "reward": math.nan}
    (run / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    (run / "run.json").write_text(json.dumps({"command": INJECTION}))
    page = write_report([run])
    [data] = payload(page)
    assert data["samples"] == [{**sample, "reward": None}]
    assert data["facts"] == {"command": INJECTION}
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script") == 2
    assert "<img" not in text


def test_the_latest_samples_of_each_kind_are_kept_and_shortened(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    samples = [{"step": s, "kind": "eval", "completion": "e"} for s in range(3)]
    samples += [{"step": s, "kind": "rollout", "completion": "r" * 100_000} for s in range(500)]
    with (run / "samples.jsonl").open("w") as file:
        file.writelines(f"{json.dumps(sample)}\n" for sample in samples)
    [data] = payload(write_report([run]))
    assert [s["step"] for s in data["samples"]] == [0, 1, 2, *range(300, 500)]
    assert "88,000 characters left out" in data["samples"][-1]["completion"]
    assert len(data["samples"][-1]["completion"]) < MAX_TEXT + 100


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    text = write_report([make_run(tmp_path / "run")]).read_text(encoding="utf-8")
    # The name of the SVG namespace is an identifier that nothing fetches.
    text = text.replace('"http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?://|//\w+\.\w|@import|url\(|\bfetch\(|XMLHttpRequest", text)
    assert not re.search(r"<(link|img|iframe|object|embed)\b|\bsrc=", text)
    assert "default-src 'none'" in text


def test_the_page_never_parses_text_as_html(tmp_path: Path) -> None:
    text = write_report([make_run(tmp_path / "run")]).read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|DOMParser", text
    )


def test_values_that_a_resumed_run_wrote_again_replace_earlier_ones(tmp_path: Path) -> None:
    lines = [{"step": s, "loss": float(s), "count": s, "verdicts/right": s} for s in range(1, 6)]
    lines += [{"step": 2, "eval_loss": 0.5}]  # another line of a step adds to it
    lines += [{"step": s, "loss": s + 0.5, "count": s + 1, "verdicts/right": 0} for s in (4, 5, 6)]
    [run] = payload(write_report([make_run(tmp_path / "run", lines)]))
    assert run["series"] == {
        "loss": {"steps": [1, 2, 3, 4, 5, 6], "values": [1.0, 2.0, 3.0, 4.5, 5.5, 6.5]},
        "count": {"steps": [1, 2, 3, 4, 5, 6], "values": [1, 2, 3, 5, 6, 7]},
        "eval_loss": {"steps": [2], "values": [0.5]},
    }
    assert run["verdicts"]["values"] == {"right": [1, 2, 3, 0, 0, 0]}
    assert run["last_step"] == 6


def test_values_that_are_no_numbers_are_gaps_or_left_out(tmp_path: Path) -> None:
    values = [1.0, None, math.nan, math.inf, True, "text", 2.0]
    lines = [{"step": s, "loss": value} for s, value in enumerate(values)]
    [run] = payload(write_report([make_run(tmp_path / "run", lines)]))
    assert run["series"]["loss"] == {
        "steps": [0, 6],
        "values": [1.0, 2.0],
        "gaps": {"count": 3, "first": 1},
    }


def test_samples_of_all_ranks_are_shown(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    for name, rank in (("samples", 0), ("samples-rank1", 1), ("samples-rank10", 10)):
        rows = [{"step": s, "kind": "rollout", "completion": f"{rank}/{s}"} for s in range(1, 151)]
        (run_dir / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    [run] = payload(write_report([run_dir]))
    shown = [sample["completion"] for sample in run["samples"]]
    assert len(shown) == MAX_SAMPLES_PER_KIND
    last = [f"{rank}/{step}" for step in range(85, 151) for rank in (0, 1, 10)]
    assert sorted(shown[2:]) == sorted(last)


def test_the_report_of_a_long_run_takes_little_memory(tmp_path: Path) -> None:
    """A line of 20 metrics takes 320 bytes; as a dict it took 5,000."""
    names = [f"metric/{i}" for i in range(20)]
    lines = ({"step": s, **dict.fromkeys(names, s + 0.5)} for s in range(1, 5001))
    run_dir = make_run(tmp_path / "run", lines)
    tracemalloc.start()
    write_report([run_dir])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6, peak
