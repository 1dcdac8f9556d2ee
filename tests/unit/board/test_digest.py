"""A digest says of a long metrics.jsonl what the whole file says."""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.board.curves import Curves
from posttrain.board.digest import MOST, Digest, preview
from posttrain.board.growing import AT_ONCE, Summaries, Workers, lines_from


def written(file: Path, rows: list[dict[str, Any]], mode: str = "w") -> Path:
    with file.open(mode) as handle:
        handle.writelines(json.dumps(row) + "\n" for row in rows)
    return file


def digest_of(rows: list[dict[str, Any]], cuts: list[int] = []) -> Digest:  # noqa: B006
    digest, offset, lines = Digest(), 0, []
    for row in rows:
        line = json.dumps(row).encode()
        lines.append((offset, line))
        offset += len(line) + 1
    bounds = [0, *sorted(c % (len(rows) + 1) for c in cuts), len(rows)]
    for start, end in itertools.pairwise(bounds):
        digest.add(lines[start:end])
    return digest


def run_rows(num_steps: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for step in range(1, num_steps + 1):
        row = {"step": step, "time": 1e9 + 2.0 * step, "loss": rng.gauss(2, 1)}
        rows.append(row | {"num_tokens": 100.0 * step, "count": step})
        if step % 50 == 0:
            rows.append({"step": step, "time": 1e9 + 2.0 * step + 1, "eval_loss": rng.random()})
    return rows


def test_a_short_run_has_every_point() -> None:
    rows = run_rows(120)
    curve = digest_of(rows).curve("loss")
    assert curve is not None
    losses = [row["loss"] for row in rows if "loss" in row]
    assert curve["steps"] == list(range(1, 121))
    assert curve["mean"] == pytest.approx(losses)
    assert curve["low"] is None
    assert curve["tokens"] == [100 * step for step in range(1, 121)]
    assert curve["seconds"] == [2 * step - 2 for step in range(1, 121)]
    evaluation = digest_of(rows).curve("eval_loss")
    assert evaluation is not None
    assert evaluation["steps"] == [50, 100]
    assert evaluation["tokens"] == [5000, 10000], "tokens of the step, though not on its line"
    assert evaluation["seconds"] == [99, 199], "time of its own line"


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9000), st.lists(st.integers(0, 10_000), max_size=6), st.integers(0, 99))
def test_parts_do_not_matter(num_steps: int, cuts: list[int], seed: int) -> None:
    """However the file was cut when it was read, the digest keeps sums, extremes and counts."""
    rows = run_rows(num_steps, seed)
    whole, parts = digest_of(rows), digest_of(rows, cuts)
    assert whole.width == parts.width
    assert whole.curve("eval_loss") == parts.curve("eval_loss")
    for name in ("steps", "low", "high", "mean"):
        a, b = whole.curve("loss")[name], parts.curve("loss")[name]  # type: ignore[index]
        assert a == b or a == pytest.approx(b, rel=1e-6)
    losses = [row["loss"] for row in rows if "loss" in row]
    columns = parts.metrics["loss"]
    assert columns[1].sum() == len(losses)
    assert columns[2].sum() == pytest.approx(math.fsum(losses))
    assert columns[5].min() == min(losses)
    assert columns[6].max() == max(losses)
    assert columns.shape[1] <= 2 * MOST + 1


@pytest.mark.parametrize(
    "line",
    [
        "[1]", "null", "7", '"x"', "{}", '{"step": "3"}',
        '{"step": null, "loss": 1}', '{"step": -1}',
        '{"step": 3.5}', '{"step": true, "loss": 1}', '{"loss": 1}', "{",
        '{"step": 1, "loss": NaN}',
        '{"step": 1, "loss": Infinity}', '{"step": 1, "loss": "x"}', '{"step": 1, "loss": [1]}',
        '{"step": 1, "loss": true}', '{"step": 1, "time": "noon", "loss": null}', "",
        '{"step": 1, "loss": 1e999}', '{"step": 1, "loss": 1' + 400 * "0" + "}", "\u0000",
    ],
)  # fmt: skip
def test_damaged_lines_are_left_out(line: str) -> None:
    digest = Digest()
    digest.add([(0, line.encode()), (50, b'{"step": 2, "loss": 0.5}')])
    curve = digest.curve("loss")
    assert curve is not None
    assert curve["mean"] == [0.5]


def test_a_file_that_grows_is_read_once(tmp_path: Path, monkeypatch: Any) -> None:
    file = written(tmp_path / "metrics.jsonl", run_rows(10))
    read: list[tuple[int, int]] = []

    def counting(path: Path, start: int, num_bytes: int) -> Any:
        read.append((start, num_bytes))
        return lines_from(path, start, num_bytes)

    monkeypatch.setattr("posttrain.board.growing.lines_from", counting)
    summaries = Summaries(Digest, Workers())
    assert summaries.look(file)[0].last_step == 10
    size = file.stat().st_size
    written(file, [{"step": 11, "loss": 1.0}], "a")
    with file.open("a") as handle:
        handle.write('{"step": 12, "lo')
    assert summaries.look(file) == (summaries.entries[file].summary, 1.0)
    assert summaries.entries[file].summary.last_step == 11, "half a line waits"
    with file.open("a") as handle:
        handle.write('ss": 3.0}\n')
    assert summaries.look(file)[0].curve("loss")["mean"][-2:] == [1, 3]  # type: ignore[index]
    assert [start for start, _ in read][:2] == [0, size]


def test_a_resumed_run_is_read_from_its_start(tmp_path: Path) -> None:
    file = written(tmp_path / "metrics.jsonl", run_rows(30))
    summaries = Summaries(Digest, Workers())
    summaries.look(file)
    other = written(tmp_path / "other", run_rows(10, seed=5) + run_rows(40, seed=6)[10:])
    other.replace(file)
    curve = summaries.look(file)[0].curve("loss")
    assert curve is not None
    assert curve["steps"] == list(range(1, 41))


def large_file(folder: Path) -> list[float]:
    """Write about three times what is read at once, and return the losses."""
    rng = random.Random(0)
    losses, filler = [], "x" * 900
    with (folder / "metrics.jsonl").open("w") as handle:
        for step in range(1, 3 * AT_ONCE // 1000):
            losses.append(rng.random())
            row = {"step": step, "time": 1e9 + step, "loss": losses[-1], "text": filler}
            handle.write(json.dumps(row) + "\n")
    return losses


def test_a_large_file_is_previewed_and_then_known_exactly(tmp_path: Path) -> None:
    losses = large_file(tmp_path)
    workers = Workers()
    try:
        curves = Curves(workers)
        begun = time.monotonic()
        first = curves.curves(tmp_path, ["loss"])
        assert time.monotonic() - begun < 2
        assert first["progress"] < 1
        shown = first["metrics"]["loss"]
        assert 500 < len(shown["steps"]) <= 1000
        assert all(losses[int(s) - 1] == pytest.approx(v, rel=1e-6)
                   for s, v in zip(shown["steps"], shown["mean"]))  # fmt: skip
        deadline = time.monotonic() + 60
        while (found := curves.curves(tmp_path, ["loss"]))["progress"] < 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        exact = found["metrics"]["loss"]
        assert max(exact["high"]) == pytest.approx(max(losses), rel=1e-6)
        assert min(exact["low"]) == pytest.approx(min(losses), rel=1e-6)
        assert found["last_step"] == len(losses)
        zoomed = curves.curves(tmp_path, ["loss"], 5000, 5100)["metrics"]["loss"]
        assert zoomed["steps"] == list(range(5000, 5101))
        assert zoomed["mean"] == pytest.approx(losses[4999:5100], rel=1e-6)
        assert zoomed["seconds"] == [s - 1 for s in zoomed["steps"]]
    finally:
        workers.close()


def test_a_preview_has_whole_lines_alone(tmp_path: Path) -> None:
    file = written(tmp_path / "metrics.jsonl", run_rows(5))
    assert preview(file).curve("loss")["steps"] == [1, 2, 3, 4, 5]  # type: ignore[index]


def test_scores_of_labels_are_found_by_step(tmp_path: Path) -> None:
    rows = []
    for step in (10, 20, 30):
        scores = {f"eval_{s}/{label}": step / 100 for s in ("precision", "recall", "f1")
                  for label in ("a", "b/c")}  # fmt: skip
        cells = {f"eval_confusion/{a}/{b}": 0.25 for a in ("a", "b/c") for b in ("a", "b/c")}
        rows += [{"step": step, "loss": 1.0}, {"step": step, "eval_loss": 1.0, **scores, **cells}]
    written(tmp_path / "metrics.jsonl", rows)
    curves = Curves(Workers())
    found = curves.classification(tmp_path, None)
    assert (found["step"], found["steps"], found["labels"]) == (30, [10, 20, 30], ["a", "b/c"])
    assert found["scores"][1] == [0.3, 0.3, 0.3]
    assert found["cells"] == [[0.25, 0.25], [0.25, 0.25]]
    assert curves.classification(tmp_path, 10)["scores"][0][0] == 0.1
    with pytest.raises(ValueError, match="no evaluation at step 15: there are 10, 20, 30"):
        curves.classification(tmp_path, 15)
    assert curves.curves(tmp_path, [])["names"] == ["eval_loss", "loss"]
