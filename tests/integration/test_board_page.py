"""The board as a person meets it: in a real browser, at the width of a desk and of a phone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from board_runs import (
    ARABIC,
    BEGUN,
    ERROR,
    INJECTION,
    LABELS,
    held,
    make_evaluation,
    make_run,
    make_runs,
    metric_lines,
    write_lines,
)
from test_report_browser import driver, find

pytestmark = pytest.mark.browser
__all__ = ["driver"]

DESK, PHONE = (1440, 900), (390, 844)
VIEWS = ("runs", "curves", "settings", "rollouts", "classification", "evaluations", "disk")
KEY = "the-key"
GRPO, SFT, DPO, LABELLED = (
    "sweep-0/grpo-seed0_20261129-000000",
    "sft-seed1_20261129-000100",
    "dpo-seed2_20261129-000200",
    "sweep-1/classification-seed3_20261129-000300",
)


@dataclass
class Served:
    """A board that can be stopped and started again at the same port."""

    root: Path
    port: int = 0
    server: Any = None
    thread: threading.Thread | None = None
    workers: list[Any] = field(default_factory=list)

    def start(self) -> None:
        """Serve in a thread of this process, so that folders it holds count as running."""
        import uvicorn

        from posttrain.board.app import Board, build_app
        from posttrain.board.growing import Workers
        from posttrain.common.loopback import listen

        listener = listen("127.0.0.1", self.port)
        self.port = listener.getsockname()[1]
        self.workers.append(Workers())
        app = build_app(Board(self.root, KEY, self.workers[-1]))
        config = uvicorn.Config(
            app, log_level="error", lifespan="off", ws="none", timeout_graceful_shutdown=1
        )
        self.server = uvicorn.Server(config)
        run = self.server.run
        self.thread = threading.Thread(target=run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Stop serving."""
        self.server.should_exit = True
        assert self.thread is not None
        self.thread.join(10)
        self.workers[-1].close()


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pytest.importorskip("uvicorn", reason="the board needs the extra serve")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("posttrain.board.catalogue.SCAN_EVERY", 0.0)
        yield from made_board(tmp_path_factory)


def made_board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("results")
    make_runs(root, 24)
    make_run(root / "nothing-yet", steps=0, state="interrupted")
    make_run(root / ("long-name-" * 12), "grpo", steps=1, begun=BEGUN - 9e5, recorded=0)
    for name, accuracy in (("base", 0.1), ("tuned", 0.3), ("other", 0.32)):
        hot = {"temperature": 0.7} if name == "base" else None
        make_evaluation(root / "evals" / name, accuracy, ("word_problems", INJECTION), settings=hot)
    board = Served(root)
    board.start()
    yield board
    board.stop()


def open_view(
    driver: Any,
    board: Served,
    view: str,
    size: tuple[int, int] = DESK,
    dark: bool = False,
    **params: str | list[str],
) -> None:
    """Open a link to a view, as if in a new tab but for the key."""
    width, height = size
    shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get("about:blank")
    driver.get_log("browser")
    driver.get(f"http://127.0.0.1:{board.port}/#/{view}?{urlencode(params, doseq=True)}")
    wait(driver, f"document.querySelector('.view.{view}')")


def look(driver: Any) -> None:
    """Read the runs again now, as the page does when its tab is shown again."""
    driver.execute_script("document.dispatchEvent(new Event('visibilitychange'))")


def wait(driver: Any, script: str) -> None:
    """Wait until an expression of the page is true, and return within 30 ms of that."""
    end = time.monotonic() + 10
    while not driver.execute_script(f"return {script}"):
        assert time.monotonic() < end, script
        time.sleep(0.03)


def texts(driver: Any, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map((node) => node.innerText)"
    found: list[str] = driver.execute_script(script, selector)
    return [" ".join(text.split()) for text in found]


def wait_for(driver: Any, selector: str, expected: list[str]) -> None:
    end = time.monotonic() + 10
    while (found := texts(driver, selector)) != expected:
        assert time.monotonic() < end, (selector, found, expected)
        time.sleep(0.03)


def press(driver: Any, selector: str) -> None:
    wait(driver, f"document.querySelector({json.dumps(selector)})")
    driver.execute_script("document.querySelector(arguments[0]).click()", selector)


def enter(driver: Any, selector: str, value: str) -> None:
    """Put a value into a field or a list as a person does, with its events."""
    driver.execute_script(
        "const [node, value] = arguments; node.value = value;"
        "for (const kind of ['input', 'change'])"
        " node.dispatchEvent(new Event(kind, {bubbles: true}));",
        find(driver, selector)[0],
        value,
    )


def points(driver: Any, metric: str) -> list[int]:
    """The number of points of each curve of a chart."""
    canvas = f"document.querySelector('figure[data-metric=\"{metric}\"] canvas')"
    wait(driver, f"{canvas}?.dataset.points")
    return [int(n) for n in driver.execute_script(f"return {canvas}.dataset.points").split()]


def fits(driver: Any) -> bool:
    wide, room = driver.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    return bool(wide <= room)


NAMES = "tr[data-run] .run-name a"


def test_runs_are_filtered_sorted_and_selected(driver: Any, board: Served) -> None:
    open_view(driver, board, "runs")
    wait_for(driver, "#found", ["26 runs"])
    for text, number in [
        ("method:grpo", 7),
        ("state:failed,killed", 12),
        ("-state:finished method:sft", 5),
        ("trainer.learning_rate<=0.0001 eval_accuracy>=0.5 method:classification", 4),
        ("trainer.learning_rate=1e-3 seed0", 1),
        ("nothing-yet", 1),
        ("word_problems", 26),
    ]:
        enter(driver, "#filter", text)
        wait(driver, f"document.querySelectorAll('{NAMES}').length === {number}")
    enter(driver, "#filter", "trainer.lerning_rate>1")
    wait_for(driver, "#found", ["No run has a setting or metric named trainer.lerning_rate."])
    enter(driver, "#filter", "method:dpo")
    wait_for(driver, "#found", ["6 of 26 runs"])
    press(driver, "[data-role='sort-name']")
    names = texts(driver, NAMES)
    assert [name.split("_")[0] for name in names[:3]] == ["dpo-seed2", "dpo-seed10", "dpo-seed14"]
    assert find(driver, "th[aria-sort=ascending]")[0].text.startswith("run")
    press(driver, "[data-role='sort-name']")
    assert texts(driver, NAMES) == names[::-1]
    assert find(driver, "th[aria-sort=descending]")
    press(driver, "[data-role=all]")
    wait(driver, "location.hash.split('run=').length === 7")
    press(driver, f"tr[data-run='{DPO}'] input")
    wait(driver, "location.hash.split('run=').length === 6")
    assert driver.execute_script("return document.querySelector('[data-role=all]').indeterminate")
    assert "Curves of 5 runs" in texts(driver, ".actions")[0]
    enter(driver, "#filter", "state:failed")
    wait(driver, "document.querySelector('details.error')")
    driver.execute_script("document.querySelector('details.error').open = true")
    assert ERROR in texts(driver, "details.error pre")[0]
    assert driver.get_log("browser") == []


FOUND = """
const [text, done] = arguments;
const same = {group: "", method: "sft", model: "m", error: null, step: 5};
const run = (id, state, settings, metrics) => ({...same, id, name: id, state, settings, metrics});
const runs = [
  run("a", "finished", {"trainer.learning_rate": "0.001", "data.name": "two words"}, {loss: 0.5}),
  run("b", "failed", {"trainer.learning_rate": "1e-05", "data.name": "ünï"}, {loss: 2}),
  run("c:1", "running", {"trainer.learning_rate": "auto"}, {"rewards/a": -1, "pass@1": 0.25}),
];
import("/filter.js").then(({filtered}) => {
  const {runs: found, unknown} = filtered(runs, text);
  done([found.map(({id}) => id).join(" "), unknown]);
});
"""


def test_conditions_of_the_filter(driver: Any, board: Served) -> None:
    open_view(driver, board, "runs")
    for text, expected, unknown in [
        ("", "a b c:1", []),
        ("   ", "a b c:1", []),
        ("trainer.learning_rate>1e-4", "a", []),
        ("learning_rate=1e-3", "a", []),
        ("learning_rate==0.00001", "b", []),
        ("learning_rate!=0.001", "b c:1", []),
        ("learning_rate:auto", "c:1", []),
        ("loss<1", "a", []),
        ("loss!=0.5", "b c:1", []),
        ("state:failed,running", "b c:1", []),
        ("-state:failed", "a c:1", []),
        ("state:", "a b c:1", []),
        ("loss>", "a b c:1", []),
        ('"two words"', "a", []),
        ('data.name="two words"', "a", []),
        ('"two', "a", []),
        ("-two", "b c:1", []),
        ("-", "b", []),
        ("ÜNÏ", "b", []),
        ("c:1", "c:1", []),
        ("rewards/a<0", "c:1", []),
        ("pass@1>=0.25", "c:1", []),
        ("loss<-1", "", []),
        ("step>=5 loss>=2", "b", []),
        ("nothing>1", "", ["nothing"]),
        ("constructor>1", "", ["constructor"]),
        ("__proto__=1", "", ["__proto__"]),
        ("(.*", "", []),
    ]:
        assert driver.execute_async_script(FOUND, text) == [expected, unknown], text


def test_columns_are_chosen_and_kept_in_the_link(driver: Any, board: Served) -> None:
    open_view(driver, board, "runs", q="seed0")
    press(driver, ".controls button")
    groups = texts(driver, ".picker-list legend")
    assert groups[0] == "Of every run"
    labels = driver.execute_script(
        "return [...document.querySelectorAll('.picker-list label')]"
        ".map((label) => [label.innerText, label.querySelector('input')])"
    )
    for name, box in labels:
        if name in ("reward", "trainer.seed"):
            driver.execute_script("arguments[0].click()", box)
    assert texts(driver, "thead .sort")[-2:] == ["reward", "trainer.seed"] or (
        texts(driver, "thead .sort")[-2:] == ["trainer.seed", "reward"]
    )
    wait(driver, "location.hash.split('col=').length === 10")
    url = driver.current_url
    driver.get("about:blank")
    driver.get(url)
    wait(driver, "document.querySelector('tr[data-run]')")
    assert "trainer.seed" in texts(driver, "thead .sort")


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_every_view_fits_and_draws_without_a_fault(
    driver: Any, board: Served, size: tuple[int, int]
) -> None:
    runs = [("run", run) for run in (GRPO, LABELLED, "long-name-" * 12)]
    open_view(driver, board, "runs", size, dark=size == PHONE)
    for view in VIEWS:
        driver.execute_script("location.hash = arguments[0]", f"#/{view}?{urlencode(runs)}")
        content = "table, .prompt-card, .disk-run, .plot canvas"
        wait(driver, f"document.querySelector('.view.{view}')?.querySelector('{content}')")
        assert fits(driver), view
        assert driver.get_log("browser") == [], view
        assert not find(driver, "img, main b b"), view
        unnamed = driver.execute_script(
            "return [...document.querySelectorAll('button, input, select, a')].filter((node) =>"
            " !node.innerText?.trim() && !node.ariaLabel && !node.labels?.length)"
            ".map((node) => node.outerHTML)"
        )
        assert unnamed == []


def test_curves_are_read_out_zoomed_and_hidden(driver: Any, board: Served) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    open_view(driver, board, "curves", run=[GRPO, SFT])
    assert points(driver, "loss") == [20, 20]
    assert points(driver, "reward") == [20]
    [canvas] = find(driver, "figure[data-metric=loss] canvas[tabindex]")
    ActionChains(driver).move_to_element(canvas).perform()
    read = texts(driver, "#tooltip")[0]
    assert read.startswith("step 1")
    assert "grpo-seed0" in read
    assert "sft-seed1" in read
    canvas.send_keys(Keys.HOME)
    assert texts(driver, "#tooltip")[0].startswith("step 1 ")
    canvas.send_keys(Keys.ARROW_RIGHT)
    assert texts(driver, "#tooltip")[0].startswith("step 2 ")
    canvas.send_keys(Keys.ESCAPE)
    assert not find(driver, "#tooltip")[0].is_displayed()

    drag = ActionChains(driver).move_to_element_with_offset(canvas, -60, 0).click_and_hold()
    drag.move_by_offset(150, 4).release().perform()
    wait(driver, "location.hash.includes('from=')")
    wait(
        driver, "!document.querySelector('[data-metric=loss] canvas').dataset.points.includes('20')"
    )
    from_, to = (int(part.split("=")[1]) for part in driver.current_url.split("&")[-2:])
    assert 1 < from_ < to < 20
    assert points(driver, "loss") == [to - from_ + 1] * 2
    press(driver, "#reset")
    assert points(driver, "loss") == [20, 20]
    press(driver, ".legend .chip")
    assert points(driver, "loss") == [20]
    press(driver, "#log")
    enter(driver, "#axis", "tokens")
    enter(driver, "#metric-filter", "rewards/")
    wait_for(driver, "figure h3", [f"rewards/{INJECTION}"])
    for part in ("hide=", "log=1", "x=tokens", "metric=rewards"):
        wait(driver, f"location.hash.includes('{part}')")
    assert driver.get_log("browser") == []


def test_a_running_run_is_followed(driver: Any, board: Served) -> None:
    folder = make_run(board.root / "live", steps=10, state="running", num_steps=40)
    with held(folder):
        open_view(driver, board, "curves", run="live")
        look(driver)
        assert points(driver, "loss") == [10]
        look(driver)
        lines = [x for x in metric_lines("sft", 25, 40, 0, BEGUN, 2.0) if x["step"] > 10]
        write_lines(folder / "metrics.jsonl", lines, "a")
        look(driver)
        wait(driver, "document.querySelector('[data-metric=loss] canvas').dataset.points === '25'")
        open_view(driver, board, "runs", q="name=live")
        wait_for(driver, ".cell-state", ["running"])
        wait_for(driver, ".cell-progress", ["25/40 · 30 s left"])
        [bar] = find(driver, "[role=progressbar]")
        assert bar.get_attribute("aria-valuenow") == "63"
    look(driver)
    wait_for(driver, ".cell-state", ["killed"])


def test_rollouts_are_browsed_token_by_token(driver: Any, board: Served) -> None:
    from selenium.webdriver.common.keys import Keys

    open_view(driver, board, "rollouts", run=[GRPO], step="15")
    wait(driver, "document.querySelectorAll('.sample').length === 6")
    [first, *_] = texts(driver, ".sample .completion-text .text")
    assert INJECTION in first
    assert ARABIC in first
    assert "injected" not in driver.title
    assert not find(driver, ".sample b b, .sample img")
    press(driver, ".sample button.link")
    wait(driver, "document.querySelector('.tokens')")
    wait(driver, "location.hash.includes('key=')")
    shown = texts(driver, ".tokens .token")
    assert shown[1] == INJECTION
    assert shown[-1] == "<|end|>"
    assert [node.text for node in find(driver, ".tokens .untrained")] == [ARABIC]
    options = texts(driver, ".token-view option")
    assert options == ["log-prob", "advantage", "logp − ref_logp", "ratio old / sampler"]
    find(driver, ".tokens .token")[0].send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    numbers = texts(driver, "#tooltip")[0]
    for name in ("log-prob, sampler", "log-prob, reference", "advantage", "no (mask 0)"):
        assert name in numbers
    enter(driver, ".token-view select", "advantage")
    assert find(driver, ".tokens .above")
    # only the first prompt of a step is recorded token by token
    driver.execute_script(
        "[...document.querySelectorAll('.sample')].at(-1).querySelector('button.link').click()"
    )
    wait(driver, "document.querySelector('.token-area p.muted')")
    assert "rollout.record_prompts" in texts(driver, ".token-area > p")[0]
    wait(driver, "!location.hash.includes('key=0%3A0')")
    url = driver.current_url
    enter(driver, ".controls [aria-label=Verdict]", "correct")
    wait(driver, "document.querySelectorAll('.sample .verdict.wrong').length === 0")
    driver.get("about:blank")
    driver.get(url)
    wait(driver, "document.querySelector('.token-area p')")
    find(driver, "#step")[0].send_keys(Keys.ARROW_RIGHT)
    wait_for(driver, ".stepper output", ["16 of 20"])
    wait(driver, "location.hash.includes('step=16')")
    enter(driver, "#kind", "eval")
    wait_for(driver, ".stepper output", ["20 of 20"])
    assert driver.get_log("browser") == []


def test_samples_of_a_step_are_filtered_and_sorted(driver: Any, board: Served) -> None:
    open_view(driver, board, "rollouts", run=[GRPO], step="10", sort="-reward")
    wait(driver, "document.querySelectorAll('.sample').length === 6")
    rewards = [float(text) for text in texts(driver, ".sample .reward")]
    assert rewards == sorted(rewards, reverse=True)
    assert set(rewards) == {0.25, 1}
    finishes = ["cut off" in text for text in texts(driver, ".sample .facts")]
    assert 0 < sum(finishes) < 6
    enter(driver, "[aria-label='Finish reason']", "length")
    wait(driver, f"document.querySelectorAll('.sample').length === {sum(finishes)}")
    assert len(find(driver, ".sample .cut-off")) == sum(finishes)
    open_view(driver, board, "rollouts", run=[GRPO], step="10", min="0.5", text="SIX")
    wait(driver, "document.querySelector('.sample')")
    assert set(texts(driver, ".sample .reward")) == {"1"}
    assert all("six" in text for text in texts(driver, ".sample .completion-text"))
    enter(driver, "[aria-label^='Text in']", "no completion has this")
    press(driver, ".samples .empty button")
    wait(driver, "document.querySelectorAll('.sample').length === 6")


def test_a_prompt_is_compared_across_steps_and_runs(driver: Any, board: Served) -> None:
    others = [GRPO, "grpo-seed4_20261129-000400"]
    open_view(driver, board, "rollouts", run=others, by="prompts")
    wait(driver, "document.querySelectorAll('.prompt-row').length > 20")
    enter(driver, "#prompt-search", "buys 3 buttons")
    wait(driver, "document.querySelectorAll('.prompt-row').length === 1")
    press(driver, ".prompt-open")
    wait(driver, "document.querySelectorAll('.side-row').length > 5")
    assert len(find(driver, ".heads > div")) == 2
    [counts] = driver.execute_script(
        "return [...document.querySelectorAll('.plot canvas[tabindex]')]"
        ".map((canvas) => canvas.dataset.points)"
    )
    assert counts == "7 4"
    assert texts(driver, ".step-head")[0].startswith("step 1")


def test_confusion_matrices_and_settings(driver: Any, board: Served) -> None:
    open_view(driver, board, "classification", run=[LABELLED])
    wait(driver, "document.querySelector('.confusion')")
    assert texts(driver, ".confusion thead .label") == list(LABELS)
    cells = "return [...document.querySelectorAll('.confusion tbody td')].map((c) => c.innerText)"
    assert driver.execute_script(cells)[:4] == ["85.7", "7.1", "7.1", "35.0 %"]
    enter(driver, "#shares", "all")
    assert driver.execute_script(cells)[:2] == ["30.0", "2.5"]
    enter(driver, "#class-step", "0")
    wait_for(driver, ".stepper output", ["10 of 20"])
    wait(driver, f"({cells.removeprefix('return ')})[0] === '25.0'")

    open_view(driver, board, "settings", run=[GRPO, SFT])
    wait(driver, "document.querySelector('.compare')")
    rows = texts(driver, ".compare tr.differs")
    assert "trainer.seed 0 1" in rows
    assert not any(row.startswith("data.name") for row in rows)
    press(driver, "#all-settings")
    assert any("data.name" in row for row in texts(driver, ".compare tbody tr"))


def test_evaluations_against_a_baseline(driver: Any, board: Served) -> None:
    open_view(driver, board, "evaluations")
    wait(driver, "document.querySelectorAll('tr[data-result]').length === 3")
    assert texts(driver, "thead .sort") == ["word_problems", INJECTION]
    enter(driver, "#baseline", "evals/base/results.json")
    wait(driver, "document.querySelectorAll('.difference').length === 4")
    rows = texts(driver, "tr[data-result]")
    assert "baseline" in rows[0]
    assert "10.0 % 4.1 to 15.9 of 100" in rows[0]
    assert "+22.0 p" in rows[1]
    assert "+20.0 p" in rows[2]
    assert "temperature is 0.7 in A and 0.0 in B" in texts(driver, ".notes")[0]
    driver.execute_script("document.querySelector('details.group').open = true")
    wait(driver, "document.querySelector('details.group table')")
    assert "word_problems: temperature 0.7 0.0 0.0" in texts(driver, "details.group tr")
    press(driver, "thead .sort")
    wait(driver, "location.hash.includes('sort=-word_problems')")


def test_a_checkpoint_and_a_run_are_deleted_after_a_question(driver: Any, board: Served) -> None:
    make_run(board.root / "old", checkpoints=(10, 20), checkpoint_bytes=2_000_000)
    open_view(driver, board, "disk", run="old")
    driver.execute_script("sessionStorage.clear()")
    look(driver)
    press(driver, ".disk-run summary")
    wait(driver, "document.querySelectorAll('.disk-part').length > 3")
    assert "key" in texts(driver, ".disk > .muted")[0]
    assert not find(driver, ".disk-part button")

    driver.get("about:blank")
    driver.get(f"http://127.0.0.1:{board.port}/#key={KEY}")
    wait(driver, "document.querySelector('.view.runs')")
    assert KEY not in driver.current_url
    open_view(driver, board, "disk", run="old")
    press(driver, ".disk-run summary")
    press(driver, "button[aria-label='Delete checkpoint-10 of old']")
    question = texts(driver, "dialog[open]")[0]
    assert "old/checkpoint-10" in question
    assert "2.00 MB" in question
    assert driver.switch_to.active_element.text == "Cancel"
    driver.switch_to.active_element.click()
    assert (board.root / "old" / "checkpoint-10").is_dir()
    press(driver, "button[aria-label='Delete checkpoint-10 of old']")
    press(driver, "dialog .danger")
    wait(driver, "document.querySelector('.disk > [role=status]').innerText.includes('freed')")
    assert not (board.root / "old" / "checkpoint-10").exists()
    wait(driver, "document.querySelectorAll('[aria-label^=\"Delete checkpoint\"]').length === 1")
    press(driver, ".parts .whole")
    press(driver, "dialog .danger")
    wait(
        driver, "document.querySelector('.disk > [role=status]').innerText.includes('Deleted old')"
    )
    assert not (board.root / "old").exists()
    assert driver.get_log("browser") == []


def test_the_page_says_that_the_server_is_gone_and_recovers(driver: Any, board: Served) -> None:
    open_view(driver, board, "runs")
    wait_for(driver, "#trouble", [""])
    board.stop()
    look(driver)
    wait(driver, "!document.querySelector('#trouble').hidden")
    assert "does not answer" in texts(driver, "#trouble")[0]
    assert find(driver, "tr[data-run]")
    make_run(board.root / "meanwhile")
    board.start()
    look(driver)
    wait(driver, "document.querySelector('#trouble').hidden")
    wait(driver, "document.querySelector('tr[data-run=meanwhile]')")


def test_an_empty_folder(driver: Any, board: Served, tmp_path: Path) -> None:
    empty = Served(tmp_path)
    empty.start()
    try:
        open_view(driver, empty, "runs")
        for view in VIEWS:
            driver.execute_script("location.hash = arguments[0]", f"#/{view}")
            wait(driver, f"document.querySelector('.view.{view} .empty')")
        make_run(tmp_path / "first", steps=1)
        look(driver)
        open_view(driver, empty, "curves")
        assert points(driver, "loss") == [1]
        assert driver.get_log("browser") == []
    finally:
        empty.stop()


@pytest.mark.slow
def test_five_hundred_runs_stay_fluent(driver: Any, tmp_path: Path) -> None:
    make_runs(tmp_path, 500, samples=False)
    many = Served(tmp_path)
    many.start()
    try:
        open_view(driver, many, "runs")
        wait(driver, "document.querySelector('#found').innerText === '500 runs'")
        for change in ('{q: "grpo loss<1"}', "{q: null}", '{sort: "name"}', '{sort: "-bytes"}'):
            took = driver.execute_async_script(
                "const done = arguments[0]; import('/state.js').then(({setParams}) => {"
                f"const begun = performance.now(); setParams({change});"
                "requestAnimationFrame(() => setTimeout(() => done(performance.now() - begun)));"
                "});"
            )
            assert took < 500, change  # ms; 25 to 60 on an idle machine of two cores
        assert len(find(driver, "tr[data-run]")) < 200
    finally:
        many.stop()
