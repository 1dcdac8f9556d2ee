"""The report page as a person meets it: drawn, read out, filtered and safe, in a real browser."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.tracking.report import write_report

pytestmark = pytest.mark.browser

INJECTION = "</script><img src=x onerror=\"document.title='injected'\"><b>{{data}}</b>"
WIDTHS = [(1280, 800), (390, 844)]
STEPS = 100
LABELS = {
    **{
        f"eval_{score}/{label}": 0.5
        for score in ("precision", "recall", "f1")
        for label in ("yes", INJECTION)
    },
    "eval_confusion/yes/yes": 0.5,
    f"eval_confusion/yes/{INJECTION}": 0.25,
}
VERDICTS = ["correct", "wrong", "wrong", INJECTION]
CHROMIUM_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run"
    " --disable-background-networking --disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in CHROMIUM_FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=chromedriver)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A report on one run and a report on two."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder / "first", 0.5), make_run(folder / "second-with-a-rather-long-name", 1)]
    return {1: write_report(runs[:1]), 2: write_report(runs, folder / "both.html")}


def make_run(run_dir: Path, scale: float) -> Path:
    """A run whose every kind of text tries to break out of the page."""
    run_dir.mkdir()
    lines: list[dict[str, Any]] = []
    for step in range(1, STEPS + 1):
        lines.append({"step": step, "loss": scale * 5 / step, "reward": scale * step / STEPS})
        lines[-1] |= {"kl": 0.01 * step, "learning_rate": 1e-6 * step, "clip_ratio/low_mean": 0.0}
        lines[-1] |= {f"other/{INJECTION}": 1.0, "verdicts/correct": 0.25, "verdicts/wrong": 0.5}
        lines[-1] |= {f"verdicts/{INJECTION}": 0.25}
        if step % 10 == 0:
            lines.append({"step": step, "eval_accuracy": scale * step / 1000} | LABELS)
    write_lines(run_dir / "metrics.jsonl", lines)
    samples = [
        {
            "step": step,
            "kind": "rollout",
            "prompt": f"prompt {index} {INJECTION}",
            "completion": INJECTION + "long\n" * 50 + "word" * 500,
            "reward": index / 3 if index else None,
            "verdict": verdict,
            "finish_reason": "length",
            "answer": INJECTION,
        }
        for step in (50, 100)
        for index, verdict in enumerate(VERDICTS)
    ]
    write_lines(run_dir / "samples.jsonl", samples)
    (run_dir / "config.yaml").write_text(
        f"method: grpo\nmodel: {{name: tiny}}\nreward: {{text: {json.dumps(INJECTION * 3)}}}\n"
        f"trainer: {{learning_rate: {scale}, max_steps: {STEPS}}}\n"
    )
    facts = {"command": INJECTION, "seconds": 4000, "versions": {INJECTION: "1"}, "status": "done"}
    (run_dir / "run.json").write_text(json.dumps(facts))
    (run_dir / "data.json").write_text(json.dumps([{"name": INJECTION, "rows": 10, "kept": 9}]))
    result = {"accuracy": scale / 2, "ci95": [scale / 3, scale], "num_problems": 1234}
    stage = {"name": INJECTION, **result, "sampled_accuracy": 0.1, "splits": {INJECTION: result}}
    (run_dir / "evaluation.json").write_text(json.dumps({"stages": [stage]}))
    return run_dir


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def find(driver: Any, selector: str) -> list[Any]:
    elements: list[Any] = driver.find_elements("css selector", selector)
    return elements


def wait(driver: Any, script: str) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(driver, 10).until(lambda _: driver.execute_script(f"return {script}"), script)


def open_page(driver: Any, page: Path, width: int = 1280, height: int = 800) -> None:
    """Load from disk at this size (a window cannot be as narrow as a phone, a viewport can)."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get_log("browser")
    driver.get(page.as_uri())
    wait(driver, "document.querySelectorAll('.plot path').length > 0")


def hover(driver: Any, element: Any) -> str:
    """The tooltip that the pointer brings up over the middle of the element."""
    from selenium.webdriver.common.action_chains import ActionChains

    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    ActionChains(driver).move_to_element(element).perform()
    [tooltip] = find(driver, "#tooltip")
    assert tooltip.is_displayed()
    text: str = tooltip.text
    return text


@pytest.mark.parametrize("size", WIDTHS)
@pytest.mark.parametrize("count", [1, 2])
def test_everything_is_drawn_and_fits(
    driver: Any, pages: dict[int, Path], count: int, size: tuple[int, int]
) -> None:
    open_page(driver, pages[count], *size)
    # A screen of one colour compresses to a few thousand bytes.
    assert len(driver.get_screenshot_as_png()) > 15_000
    driver.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    wait(driver, "[...document.querySelectorAll('.plot')].every((plot) => plot.childElementCount)")
    drawn = {
        figure.get_attribute("data-metric"): [
            int(path.get_attribute("data-points"))
            for path in figure.find_elements("css selector", "path[data-points]")
        ]
        for figure in find(driver, "figure[data-metric]")
    }
    assert list(drawn)[:5] == ["reward", "eval_accuracy", "loss", "kl", "learning_rate"]
    assert set(drawn) - set(list(drawn)[:5]) == {"clip_ratio/low_mean", f"other/{INJECTION}"}
    for metric, points in drawn.items():
        assert points == [10 if metric == "eval_accuracy" else STEPS] * count
    assert not find(driver, "path[d*=NaN], path[d*=Inf], text[y*=NaN], rect[height*=NaN]")
    assert len(find(driver, "#verdicts figure rect")) == count * STEPS * 3
    # the row of the label that no row has is empty
    cells = [cell.text for cell in find(driver, "#classification .confusion tbody td")]
    assert cells == ["67", "33", "–", "–"] * count
    assert len(find(driver, "#classification table.scores tbody tr")) == 2 * count
    wide, room = driver.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= room
    assert driver.get_log("browser") == []


def test_ticks_of_a_small_range_are_told_apart(driver: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 1)
    lines = [{"step": step, "eval_loss": 1.7801 + step / 50_000} for step in range(1, STEPS + 1)]
    write_lines(run / "metrics.jsonl", lines)
    open_page(driver, write_report([run]))
    script = """return [...document.querySelectorAll('figure[data-metric=eval_loss] text')]
        .filter((text) => text.getAttribute('text-anchor') === 'end').map((t) => t.textContent)"""
    found = [text for text in driver.execute_script(script) if "." in text]
    assert found == ["1.7805", "1.781", "1.7815", "1.782"]


@pytest.mark.parametrize("size", WIDTHS)
def test_pointing_at_a_curve_reads_out_its_values(
    driver: Any, pages: dict[int, Path], size: tuple[int, int]
) -> None:
    open_page(driver, pages[2], *size)
    point = find(driver, "figure[data-metric=eval_accuracy] circle")[2]
    words = " ".join(hover(driver, point).split())
    assert words == "step 30 first 0.015 second-with-a-rather-long-name 0.03"
    box = find(driver, "#tooltip")[0].rect
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= size[0]


def test_arrow_keys_read_out_values(driver: Any, pages: dict[int, Path]) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(driver, pages[1])
    [chart] = find(driver, "figure[data-metric=loss] svg")
    [tooltip] = find(driver, "#tooltip")
    for keys, line in [
        (Keys.END, "step 100\nloss 0.025"),
        (Keys.HOME, "step 1\nloss 2.5"),
        (Keys.ARROW_RIGHT, "step 2\nloss 1.25"),
    ]:
        chart.send_keys(keys)
        assert tooltip.text.startswith(line)
    chart.send_keys(Keys.ESCAPE)
    assert not tooltip.is_displayed()


def test_smoothing_log_scale_and_hidden_runs_redraw(driver: Any, pages: dict[int, Path]) -> None:
    from selenium.webdriver.common.keys import Keys

    def curves() -> list[str]:
        return [path.get_attribute("d") for path in find(driver, "[data-metric=loss] path")]

    open_page(driver, pages[2])
    assert len(curves()) == 4
    find(driver, "#smoothing")[0].send_keys(Keys.HOME)
    linear = curves()
    assert len(linear) == 2
    find(driver, "#log")[0].click()
    assert curves() != linear
    labels = [text.text for text in find(driver, "[data-metric=loss] svg text")]
    assert {"0.1", "1"} <= set(labels)
    assert "0" not in labels
    find(driver, ".legend button")[0].click()
    assert len(curves()) == 1


def test_samples_are_filtered_by_verdict_and_step(driver: Any, pages: dict[int, Path]) -> None:
    from selenium.webdriver.common.keys import Keys

    def shown() -> list[str]:
        return [card.get_attribute("data-verdict") for card in find(driver, "article.sample")]

    open_page(driver, pages[1])
    assert shown() == VERDICTS
    find(driver, "button[data-verdict=wrong]")[0].click()
    assert shown() == ["wrong", "wrong"]
    assert "reward 0.3333" in find(driver, "article.sample")[0].text
    find(driver, "#all-steps")[0].click()
    assert shown() == ["wrong"] * 4
    find(driver, "#all-steps")[0].click()
    find(driver, "button[data-verdict=all]")[0].click()
    assert shown() == VERDICTS
    find(driver, "#sample-step")[0].send_keys(Keys.HOME)
    assert all("step 50" in card.text for card in find(driver, "article.sample"))


def test_long_text_opens(driver: Any, pages: dict[int, Path]) -> None:
    open_page(driver, pages[1])
    wait(driver, "document.querySelector('.completion.long')")
    [text, *_] = find(driver, ".completion.long")
    button = text.find_element("xpath", "following-sibling::button")
    closed = text.rect["height"]
    driver.execute_script("arguments[0].click()", button)
    assert button.get_attribute("aria-expanded") == "true"
    assert text.rect["height"] > 3 * closed


def test_model_output_is_inert(driver: Any, pages: dict[int, Path]) -> None:
    for page in pages.values():
        open_page(driver, page)
        assert "injected" not in driver.title
        assert find(driver, "img") == find(driver, "main b:not(.bar b)") == []
        assert find(driver, ".completion")[0].text.startswith(INJECTION)
        # Even text that got into the page as an element could run nothing.
        driver.execute_script(
            "const element = document.createElement('div');"
            "element.setAttribute('onclick', \"document.title = 'injected'\");"
            "document.body.append(element); element.click();"
        )
        assert "injected" not in driver.title
        driver.get_log("browser")


def test_samples_of_tasks_show_what_they_have(driver: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_lines(run / "metrics.jsonl", [{"step": 1, "loss": 1.0}])
    written = {"prompt": "Write.", "completion": "Ho", "answer": "Hi"}
    pair = {"choices": ["So.", INJECTION], "logprobs": [-2, -3.5]}
    asked = {"prompt": "Who?", "chosen": 1, "choices": ["A", "B"], "logprobs": [-4, -1]}
    samples = [written, pair, asked, {"reward": None}]
    write_lines(run / "samples.jsonl", [{"step": 1, "kind": "task"} | x for x in samples])
    open_page(driver, write_report([run]))
    head = "Choices, each after its log-prob"
    assert [card.text.splitlines() for card in find(driver, "article.sample")] == [
        ["task · step 1", "Prompt", "Write.", "Completion", "Ho", "Expected answer", "Hi"],
        ["task · step 1", head, "-2 So.", f"-3.5 {INJECTION}"],
        ["task · step 1", "Prompt", "Who?", head, "-4 A", "-1 B"],
        ["no reward", "task · step 1"],
    ]
    assert driver.get_log("browser") == []


def test_odd_and_sparse_records_are_shown(driver: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    lines = [{"step": 0, "loss": -1.0, "kl": None, "verdicts/correct": 7, "reward": 1e-9}]
    lines[0] |= {"eval_f1/a": None, "eval_confusion/a/a": None}
    write_lines(run / "metrics.jsonl", lines)
    write_lines(run / "samples.jsonl", [{"step": 0, "prompt": [1, {"a": None}]}])
    (run / "data.json").write_text("[{}]")
    (run / "run.json").write_text('{"seconds": "?", "status": 3, "best": {"a": [1]}}')
    (run / "evaluation.json").write_text('{"stages": [{"accuracy": null, "ci95": [0]}, {}]}')
    open_page(driver, write_report([run]))
    find(driver, "#log")[0].click()
    notes = {
        figure.get_attribute("data-metric"): figure.find_element("class name", "note").text
        for figure in find(driver, "figure[data-metric]")
    }
    assert notes == {
        "reward": "",
        "loss": "shown linear: no value is positive",
        "kl": "1 value is not a number, first at step 0",
    }
    for section in find(driver, "main > section"):
        empty = section.get_attribute("id") in ("settings", "sweep")
        assert section.is_displayed() == (not empty)
    assert not find(driver, "path[d*=NaN], circle[cy*=NaN], text[y*=NaN], rect[height*=NaN]")
    assert driver.get_log("browser") == []


def test_settings_that_differ_come_first(driver: Any, pages: dict[int, Path]) -> None:
    open_page(driver, pages[2])
    rows = [row.text for row in find(driver, "#settings table.diff tbody tr")]
    assert [row.split() for row in rows] == [["trainer.learning_rate", "0.5", "1"]]
    find(driver, "#settings summary")[0].click()
    assert len(find(driver, "#settings details tbody tr")) == 5
