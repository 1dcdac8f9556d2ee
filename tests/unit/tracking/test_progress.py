"""Progress of a run in a notebook and on a console."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from posttrain.tracking import progress
from posttrain.tracking.progress import NotebookBar, TerminalBar, clock, progress_bar


class Screen:
    """What IPython would show: the first data of a display, then its updates."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []

    def display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> Screen:
        assert raw
        assert display_id
        self.shown.append(data)
        return self

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown.append(data)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    found = Screen()
    modules = {name: ModuleType(name) for name in ("IPython", "IPython.display")}
    modules["IPython"].display = modules["IPython.display"]  # type: ignore[attr-defined]
    modules["IPython.display"].display = found.display  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(progress, "IN_NOTEBOOK", True)
    return found


def test_a_notebook_gets_one_display_that_is_updated(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = progress_bar("grpo", 40, 10)
    assert isinstance(bar, NotebookBar)
    for step in range(11, 41):
        now[0] += 0.1
        bar.update(step)
    assert 8 <= len(screen.shown) <= 14, "not a message for every step"
    assert screen.shown[1]["text/plain"] == "grpo: step 13 of 40, 0:00, left 0:03"
    bar.stop()
    assert screen.shown[-1] == {
        "text/plain": "grpo: step 40 of 40, 0:03",
        "text/html": '<div><progress max="40" value="40"></progress> '
        "grpo: step 40 of 40, 0:03</div>",
    }


def test_a_run_that_stops_early_leaves_its_last_step(screen: Screen) -> None:
    bar = progress_bar("<b>", 1_000)
    bar.update(17)
    bar.stop()
    assert "step 17 of 1,000" in screen.shown[-1]["text/plain"]
    assert "<b>" not in screen.shown[-1]["text/html"]


@pytest.mark.parametrize(("total", "steps"), [(0, []), (1, [1]), (3, [4, 5]), (5, [0])])
def test_odd_numbers_of_steps(
    screen: Screen, total: int, steps: list[int], monkeypatch: Any
) -> None:
    monkeypatch.setattr(progress, "EVERY", -1.0)
    bar = progress_bar("sft", total)
    for step in steps:
        bar.update(step)
    bar.stop()
    assert len(screen.shown) == len(steps) + 2


def test_where_nothing_can_be_shown_nothing_breaks(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, "display", lambda *args, **keys: None)
    sys.modules["IPython.display"].display = screen.display  # type: ignore[attr-defined]
    bar = progress_bar("sft", 2)
    bar.update(1)
    bar.stop()


def test_elsewhere_it_is_the_console_s(capfd: Any) -> None:
    bar = progress_bar("sft", 3)
    assert isinstance(bar, TerminalBar)
    bar.update(3)
    bar.stop()
    assert capfd.readouterr().out.strip() == "", "a file gets no bar"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (6.6, "0:07"), (725, "12:05"), (3723, "1:02:03"), (59.6, "1:00")],
)
def test_durations(seconds: float, text: str) -> None:
    assert clock(seconds) == text
