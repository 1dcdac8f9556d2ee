"""A series in the report: the picture of its values and metric, and the table of its runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_report_browser import (  # noqa: F401
    INJECTION,
    WIDTHS,
    driver,
    find,
    make_run,
    open_page,
)

from posttrain.tracking.report import write_report

RATES = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3]


def series(**changes: Any) -> dict[str, Any]:
    """A search of six runs: the last was ended early, the fourth is the best."""
    runs = [
        {
            "label": f"trial-{i}",
            "state": "finished" if i < 5 else "pruned",
            "params": {
                "trainer.learning_rate": rate,
                "model.name": f"org/a-rather-long-name-of-a-model-{i % 2}",
                "trainer.scheduler": INJECTION if i == 2 else "cosine",
                "trainer.adam_betas": [0.9, 0.95],
            },
            "value": abs(i - 3) + 0.5 if i < 5 else None,
            "steps": 10 * i,
            "error": f"no such model {INJECTION}" if i == 5 else None,
            "run": i if i < 2 else None,
        }
        for i, rate in enumerate(RATES)
    ]
    axes = [{"name": key, "log": key == "trainer.learning_rate"} for key in runs[0]["params"]]
    return {"axes": axes, "metric": "eval_loss", "mode": "min", "runs": runs, **changes}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, which several series share."""
    folder = tmp_path_factory.mktemp("series")
    for i in (0, 1):
        make_run(folder / f"trial-{i}", 1 + i)
    return folder


def page(folder: Path, name: str, sweep: dict[str, Any]) -> Path:
    return write_report([folder / "trial-0", folder / "trial-1"], folder / f"{name}.html", sweep)


@pytest.mark.browser
@pytest.mark.parametrize("size", WIDTHS)
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_line_for_each_run_fits_and_reads_out(
    driver: Any,  # noqa: F811
    folder: Path,
    mode: str,
    size: tuple[int, int],
) -> None:
    open_page(driver, page(folder, mode, series(mode=mode)), *size)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= size[0]
    lines = find(driver, ".parallel path.run")
    assert len(lines) == 6
    assert len(find(driver, ".parallel path.unfinished")) == 1
    # every text of the picture is inside of it
    outside = driver.execute_script(
        "const b = document.querySelector('.parallel').getBoundingClientRect();"
        "return [...document.querySelectorAll('.parallel text')].filter((t) => {"
        "const r = t.getBoundingClientRect(); return r.left < b.left || r.right > b.right"
        " || r.top < b.top || r.bottom > b.bottom;}).map((t) => t.textContent)"
    )
    assert outside == []
    best, worst = ("trial-3", "trial-0") if mode == "min" else ("trial-0", "trial-3")
    [picture] = find(driver, ".parallel svg")
    from selenium.webdriver.common.keys import Keys

    picture.send_keys(Keys.ARROW_RIGHT)
    [tooltip] = find(driver, "#tooltip")
    assert tooltip.text.startswith(best)
    assert "learning_rate" in tooltip.text
    assert "eval_loss" in tooltip.text
    assert find(driver, ".parallel path.at")[0].get_attribute("data-run") == best
    picture.send_keys(Keys.END, Keys.ARROW_LEFT)
    assert tooltip.text.startswith(worst)
    picture.send_keys(Keys.END)
    assert "pruned" in tooltip.text
    picture.send_keys(Keys.ESCAPE)
    assert not tooltip.is_displayed()
    first = find(driver, "#sweep tbody th")[0].text
    assert first == best
    assert "no such model" in find(driver, "#sweep .error")[-1].text
    assert "The sections below show 2 of the 6 runs." in find(driver, "#sweep")[0].text
    assert driver.title != "injected"
    assert driver.get_log("browser") == []


@pytest.mark.browser
def test_pointing_at_a_line_reads_out_its_run(driver: Any, folder: Path) -> None:  # noqa: F811
    open_page(driver, page(folder, "pointed", series()))
    hit = driver.execute_script(
        "const path = document.querySelector('.parallel path.run[data-run=trial-0]');"
        "path.scrollIntoView({block: 'center'});"
        "const at = path.getPointAtLength(path.getTotalLength() - 15), m = path.getScreenCTM();"
        "const x = at.x * m.a + m.e, y = at.y * m.d + m.f, found = document.elementFromPoint(x, y);"
        "found.dispatchEvent(new PointerEvent('pointermove', {clientX: x, clientY: y}));"
        "return found.getAttribute('class')"
    )
    assert hit == "reach"
    [tooltip] = find(driver, "#tooltip")
    assert tooltip.text.startswith("trial-0")
    [drawn] = find(driver, ".parallel path.at")
    assert drawn.get_attribute("data-run") == "trial-0"


@pytest.mark.browser
@pytest.mark.parametrize(
    ("changes", "num_lines"),
    [
        ({"metric": None, "mode": None}, 6),
        ({"axes": []}, 0),
        ({"axes": [{"name": "model.name", "log": False}]}, 6),
        ({"axes": [{"name": "nowhere", "log": False}]}, 6),
        ({"axes": [{"name": "trainer.adam_betas", "log": True}]}, 6),
    ],
)
def test_sparse_series_are_drawn(
    driver: Any,  # noqa: F811
    folder: Path,
    changes: dict[str, Any],
    num_lines: int,
) -> None:
    sweep = series(**changes)
    if sweep["metric"] is None:
        sweep["runs"] = [run | {"value": None} for run in sweep["runs"]]
    open_page(driver, page(folder, "sparse", sweep))
    assert len(find(driver, ".parallel path.run")) == num_lines
    assert len(find(driver, "#sweep tbody tr")) == 6
    assert not any("NaN" in x.get_attribute("d") for x in find(driver, ".parallel path"))
    assert driver.get_log("browser") == []


@pytest.mark.browser
def test_a_series_of_finished_models_needs_no_table(
    driver: Any,  # noqa: F811
    folder: Path,
) -> None:
    runs = [run | {"state": "finished", "value": None} for run in series()["runs"][:2]]
    sweep = {"axes": [], "metric": None, "mode": None, "runs": runs}
    open_page(driver, page(folder, "models", sweep))
    assert not find(driver, "#sweep")[0].is_displayed()


def test_a_series_is_in_the_page_and_cannot_leave_its_data(folder: Path) -> None:
    text = page(folder, "data", series()).read_text()
    _, _, rest = text.partition('id="data">')
    data = json.loads(rest.partition("</script>")[0])
    assert data["sweep"] == series()
    assert [run["name"] for run in data["runs"]] == ["trial-0", "trial-1"]
    assert text.count("<script") == 2
