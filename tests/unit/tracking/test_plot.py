"""Curves as a picture: whatever was written, and nothing that was not."""

from __future__ import annotations

import json
import math
import re
import xml.dom.minidom
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.tracking.plot import HEIGHT, WIDTH, Panel, Plot, curves, points_of, svg, ticks

FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def written(folder: Path, *lines: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def places(picture: str) -> list[list[tuple[float, float]]]:
    """The corners of each curve, in pixels."""
    lines = re.findall(r'<polyline points="([^"]*)"', picture)
    return [[tuple(map(float, p.split(","))) for p in line.split()] for line in lines]  # type: ignore[misc]


def test_a_curve_has_the_values_that_were_written(tmp_path: Path) -> None:
    run = written(
        tmp_path,
        {"step": 0, "eval_loss": 4},
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": None},
        {"step": 3, "loss": 1.5},
        {"step": 3, "eval_loss": 1.0},
    )
    plot = curves({"a": run}, ["loss", "eval_loss"])
    assert [panel.curves for panel in plot.panels] == [
        {"a": [(1, 3.0), (3, 1.5)]},
        {"a": [(0, 4), (3, 1.0)]},
    ]
    assert repr(plot) == (
        "loss: 3 at step 1, 1.5 at step 3, between 1.5 and 3\n"
        "eval_loss: 4 at step 0, 1 at step 3, between 1 and 4"
    )


def test_higher_values_are_higher_and_later_steps_to_the_right() -> None:
    (corners,) = places(svg(Plot((Panel("x", {"a": [(1, 1.0), (2, 3.0), (4, 2.0)]}),), ("a",))))
    (x1, y1), (x2, y2), (x3, y3) = corners
    assert x1 < x2 < x3
    assert x3 - x2 == pytest.approx(2 * (x2 - x1), abs=0.2)
    assert y2 < y3 < y1, "pixels count from the top"
    assert y1 - y3 == pytest.approx(y3 - y2, abs=0.2)


@given(st.lists(FLOATS, min_size=1, max_size=40), st.text(max_size=12), st.text(max_size=12))
def test_any_values_and_names_are_a_picture(values: list[float], metric: str, label: str) -> None:
    panel = Panel(metric, {label: list(enumerate(values)), label + "2": [(7, 1.0)]})
    picture = svg(Plot((panel,), (label, label + "2")))
    xml.dom.minidom.parseString(picture.encode("utf-8", "surrogatepass"))
    for corners in places(picture):
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in corners)
    repr(Plot((panel,), (label, label + "2")))


@given(FLOATS, FLOATS)
def test_ticks_are_few_round_and_inside(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    if high / 2 - low / 2 <= max(abs(low), 1e-290) * 1e-5:
        return
    found = ticks(low, high)
    assert 1 <= len(found) <= 9
    assert all(math.isfinite(tick) for tick in found)
    slack = (high / 2 - low / 2) * 1e-6
    assert all(low - slack <= tick <= high + slack for tick in found)


def test_ticks_of_common_ranges() -> None:
    assert ticks(0, 1) == [0, 0.5, 1]
    assert ticks(1, 300) == [100, 200, 300]
    assert ticks(-2, 2) == [-2, -1, 0, 1, 2]


def test_what_is_in_a_name_is_text(tmp_path: Path) -> None:
    evil = '</text><script>alert("1")</script>\x1b[31m'
    run = written(tmp_path, {"step": 1, evil: 2.0})
    plot = curves({evil: run, "b": run}, [evil])
    assert "<script" not in svg(plot)
    assert "\x1b" not in svg(plot) + repr(plot)


def test_each_run_has_a_colour_and_a_legend_if_there_are_several(tmp_path: Path) -> None:
    a = written(tmp_path / "a", {"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5})
    b = written(tmp_path / "b", {"step": 1, "reward": 1.0}, {"step": 2, "reward": 0.5})
    both = svg(curves({"first": a, "second": b}, ["loss", "reward"]))
    strokes = re.findall(r'<polyline[^>]*stroke="([^"]*)"', both)
    assert len(set(strokes)) == 2, "a run without the metric keeps its colour for the next panel"
    for label, stroke in zip(("first", "second"), strokes):
        assert f'stroke="{stroke}" stroke-width="3"/><text x="80"' in both
        assert f">{label}</text>" in both
    assert ">first</text>" not in svg(curves({"first": a}, ["loss"]))


def test_a_metric_that_no_run_has_is_refused(tmp_path: Path) -> None:
    run = written(tmp_path / "a", {"step": 1, "loss": 1.0, "time": 2.0})
    with pytest.raises(ValueError, match="no run has the metric 'los'; did you mean loss\\?"):
        curves({"a": run}, ["los"])
    with pytest.raises(ValueError, match="'loss'; none has written one yet"):
        curves({"a": written(tmp_path / "b")}, ["loss"])
    for runs, metrics in (({}, ["loss"]), ({"a": run}, [])):
        with pytest.raises(ValueError, match="name at least one run and one metric"):
            curves(runs, metrics)


def test_numbers_only() -> None:
    values = [1, 2.5, True, "3", None, math.nan, math.inf, [4]]
    metrics = {step: {"x": value} for step, value in enumerate(values)}
    assert points_of(metrics, "x") == [(0, 1), (1, 2.5)]


def test_it_is_saved_as_svg_only(tmp_path: Path) -> None:
    plot = curves({"a": written(tmp_path, {"step": 1, "loss": 1.0})}, ["loss"])
    file = plot.save(tmp_path / "new" / "loss.svg")
    assert file.read_text() == plot._repr_svg_()
    with pytest.raises(ValueError, match=r"ends in \.svg"):
        plot.save(tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


def test_long_curves_stay_small(tmp_path: Path) -> None:
    points = [(step, math.sin(step)) for step in range(100_000)]
    picture = svg(Plot((Panel("x", {"a": points}),), ("a",)))
    assert len(picture) < 30_000
    (corners,) = places(picture)
    heights = [y for _, y in corners]
    assert max(heights) - min(heights) > HEIGHT / 2, "its extremes are kept"
