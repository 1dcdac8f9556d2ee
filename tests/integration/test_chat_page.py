"""The chat page as a person meets it: in a real browser, at the width of a desk and of a phone."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Live, chat_model, served
from test_report_browser import driver, find, wait

from posttrain.serving.page import PAGE, protection, shown
from posttrain.serving.votes import Votes

pytestmark = pytest.mark.browser
__all__ = ["driver"]

WIDTHS = [(1280, 800), (390, 844)]
INJECTION = (
    "<img src=x onerror=\"document.title='injected'\"><script>document.title='injected'</script>"
    "</textarea><b>bold</b> &lt;i&gt; [a](javascript:alert(1)) {{data}}"
)
CODE = (
    "Look:\n\n```python\nif a < b:\n    print('<b>' + '" + "x" * 300 + "')\n```\nand `c <d>` **e**."
)
ARABIC = "ثلاث قطط لها اثنتا عشرة رجلاً."

# Answers with given texts instead of the server's, in pieces, and what was asked for.
SCRIPTED = r"""
const [texts, delay, reason] = arguments;
const real = window.fetch;
let number = 0;
window.sent = [];
window.fetch = async (path, options) => {
  if (!path.endsWith('chat/completions')) return real(path, options);
  window.sent.push(JSON.parse(options.body));
  const text = texts[number++ % texts.length];
  const failed = (message) => new Response(JSON.stringify({ error: { message } }), { status: 429 });
  if (text === null) return failed('the server is busy: try again later');
  const encoder = new TextEncoder();
  const body = new ReadableStream({ async start(control) {
    const send = (event) => control.enqueue(encoder.encode(`data: ${JSON.stringify(event)}\n\n`));
    const end = () => control.error(new DOMException('', 'AbortError'));
    options.signal.addEventListener('abort', end);
    for (const content of text.match(/[\s\S]{1,5}/gu) ?? []) {
      if (delay) await new Promise((done) => setTimeout(done, delay));
      if (options.signal.aborted) return;
      send({ choices: [{ index: 0, delta: { content }, finish_reason: null }] });
    }
    send({ choices: [{ index: 0, delta: {}, finish_reason: reason }] });
    send({ choices: [], usage: { completion_tokens: 7 } });
    control.enqueue(encoder.encode('data: [DONE]\n\n'));
    control.close();
  } });
  return new Response(body);
};
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    long = folder / "dpo_with-a-rather-long-name" / "checkpoint-300"
    return chat_model(folder / "tiny"), chat_model(long, hidden_size=48)


@pytest.fixture(scope="module")
def votes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("votes") / "votes.jsonl"


@pytest.fixture(scope="module")
def live(folders: tuple[Path, Path], votes: Path) -> Iterator[Live]:
    with served(folders[0], beside=str(folders[1]), votes=str(votes)) as server:
        yield server


def open_page(
    driver: Any, live: Live, size: tuple[int, int] = WIDTHS[0], dark: bool = False
) -> None:
    width, height = size
    shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get(f"{live.url}/")
    driver.get_log("browser")
    wait(driver, "document.querySelectorAll('#model-0 option').length > 0")


def scripted(driver: Any, *texts: str | None, delay: int = 0, reason: str = "stop") -> None:
    driver.execute_script(SCRIPTED, list(texts), delay, reason)


def say(driver: Any, text: str, until_done: bool = True) -> None:
    from selenium.webdriver.common.keys import Keys

    [field] = find(driver, "#say")
    field.send_keys(text)
    field.send_keys(Keys.ENTER)
    if until_done:
        wait(driver, "document.getElementById('go').textContent === 'Send'")
        wait(driver, "!document.querySelector('.live')")


def answers(driver: Any) -> list[str]:
    return [node.text for node in find(driver, ".answer .text")]


def press(driver: Any, selector: str) -> None:
    """Click through the page, as something may float above a button on a phone."""
    driver.execute_script("document.querySelector(arguments[0]).click()", selector)


def fits(driver: Any) -> bool:
    wide, room = driver.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    return bool(wide <= room)


def set_field(driver: Any, name: str, value: str) -> None:
    driver.execute_script("document.getElementById(arguments[0]).value = arguments[1]", name, value)


@pytest.mark.parametrize("size", WIDTHS)
def test_a_message_is_answered_as_the_api_answers_it(
    driver: Any, live: Live, size: tuple[int, int]
) -> None:
    open_page(driver, live, size)
    for name, value in (("seed", "5"), ("temperature", "0.7"), ("max_tokens", "24")):
        set_field(driver, name, value)
    set_field(driver, "system", "Be brief.")
    say(driver, "What is 1?")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1?"},
    ]
    keys = {"max_tokens": 24, "temperature": 0.7, "seed": 5}
    status, answer = live.ask("POST", "/v1/chat/completions", {"messages": messages, **keys})
    assert status == 200
    choice = answer["choices"][0]
    assert driver.execute_script("return turns[0].answers[0].text") == choice["message"]["content"]
    assert driver.execute_script("return turns[0].answers[0].reason") == choice["finish_reason"]
    assert re.search(r"\d+ tokens · [\d.]+/s", find(driver, ".foot .facts")[0].text)
    assert fits(driver)
    assert len(driver.get_screenshot_as_png()) > 8_000
    assert driver.get_log("browser") == []
    assert live.idle()


def test_stop_ends_the_answer_here_and_on_the_server(driver: Any, live: Live) -> None:
    open_page(driver, live)
    set_field(driver, "max_tokens", "200")
    box = driver.execute_script(
        "return document.getElementById('go').getBoundingClientRect().toJSON()"
    )
    scripted(driver, "word " * 400, delay=15)
    say(driver, "Talk!", until_done=False)
    wait(driver, "turns[0].answers[0].text.length > 20")
    [go] = find(driver, "#go")
    assert go.text == "Stop"
    size = "return document.getElementById('go').getBoundingClientRect().toJSON()"
    assert driver.execute_script(size) == box, "the button jumps"
    go.click()
    wait(driver, "!document.querySelector('.live')")
    said = driver.execute_script("return turns[0].answers[0].text")
    assert 20 < len(said) < 2000
    assert "stopped" in find(driver, ".foot")[0].text
    time.sleep(0.2)
    assert driver.execute_script("return turns[0].answers[0].text") == said
    open_page(driver, live)  # now a real one
    set_field(driver, "max_tokens", "230")
    say(driver, "Talk!", until_done=False)
    press(driver, "#fresh")
    assert answers(driver) == []
    assert live.idle()


def test_text_of_a_model_is_text(driver: Any, live: Live) -> None:
    open_page(driver, live)
    scripted(driver, INJECTION, CODE, ARABIC)
    say(driver, INJECTION.replace("\n", " "))
    assert driver.execute_script("return document.title") == "posttrain chat"
    assert find(driver, "#log img, #log script, #log b:not(.who b), #log a") == []
    assert answers(driver)[0] == INJECTION
    assert find(driver, ".said")[0].text == INJECTION
    say(driver, "code")
    [code] = find(driver, "#log pre code")
    assert code.text.startswith("if a < b:\n    print('<b>'")
    assert [node.text for node in find(driver, "code.inline")] == ["c <d>"]
    assert [node.text for node in find(driver, ".text strong")] == ["e"]
    say(driver, ARABIC)
    assert answers(driver)[2] == ARABIC
    driver.execute_script(
        "const node = document.createElement('div');"
        "node.setAttribute('onclick', \"document.title = 'injected'\");"
        "document.body.append(node); node.click();"
    )
    assert driver.execute_script("return document.title") == "posttrain chat"
    assert fits(driver)


ODD_TEXTS = [
    "",
    " ",
    "\n\n\n",
    "```",
    "```\n",
    "```python\nnever closed",
    "``` \n```\n```\n",
    "~~~\ntilde\n~~~",
    "````\n```\ninner\n```\n````\nafter",
    "text ```not a fence``` text",
    "**",
    "****",
    "**a*b**",
    "`",
    "``",
    "x" * 5000,
    "a\u202eb\u2066c",
    "🙂" * 200,
    "\u0000\u0007\u001b[31m",
    "<" * 300,
    "&amp;&lt;&#60;",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "$$\\frac{1}{2}$$ \\(x\\)",
    "- [ ] a\n1. b\n# c",
    "a\r\nb\rc\u2028d",
    "שלום " * 50,
    "constructor __proto__ toString",
]


@pytest.mark.parametrize("size", WIDTHS)
def test_odd_texts_keep_every_character_and_the_width(
    driver: Any, live: Live, size: tuple[int, int]
) -> None:
    open_page(driver, live, size)
    for text in ODD_TEXTS:
        shown_text = driver.execute_script(
            "const box = document.createElement('div'); box.className = 'text';"
            "box.append(shown(arguments[0])); log.append(box); return box.textContent",
            text,
        )
        # the signs of fences, code and bold are gone, and so is space at the edges
        left = re.sub(r"[\s`~*]|python", "", shown_text)
        assert left == re.sub(r"[\s`~*]|python", "", text), text[:40]
    assert fits(driver)
    assert driver.get_log("browser") == []


@pytest.mark.parametrize("size", WIDTHS)
def test_two_models_and_a_vote(
    driver: Any, live: Live, votes: Path, size: tuple[int, int], tmp_path: Path
) -> None:
    before = votes.read_text().splitlines()
    open_page(driver, live, size)
    press(driver, "#compare")
    scripted(driver, "Twelve.", CODE, ARABIC, "Fine.")
    say(driver, "How many legs?")
    assert [node.text for node in find(driver, ".who b")] == [
        "tiny",
        "dpo_with-a-rather-long-name/checkpoint-300",
    ]
    a, b = (node.rect for node in find(driver, ".pair .answer"))
    assert (a["y"] == b["y"]) == (size[0] > 720), "side by side at a desk, one above the other else"
    assert [node.text for node in find(driver, ".vote button")] == ["A is better", "B is better"]
    composer = "return document.querySelector('.composer').getBoundingClientRect().toJSON()"
    place = driver.execute_script(composer)
    press(driver, ".vote button:nth-child(2)")
    wait(driver, "document.querySelector('.better')")
    assert driver.execute_script(composer) == place, "the composer jumps"
    rows = [json.loads(line) for line in votes.read_text().splitlines()]
    assert len(rows) == len(before) + 1
    row = rows[-1]
    assert row["prompt"] == [{"role": "user", "content": "How many legs?"}]
    assert (row["chosen"], row["rejected"]) == (CODE, "Twelve.")
    assert row["meta"]["chosen_model"] == "dpo_with-a-rather-long-name/checkpoint-300"
    assert row["meta"]["settings"]["temperature"] == 0.7
    assert f"{len(rows)} in votes.jsonl" in find(driver, ".vote")[0].text
    say(driver, "And now?")
    sent = driver.execute_script("return window.sent")
    history = [m["content"] for m in sent[2]["messages"]]
    assert history == ["How many legs?", CODE, "And now?"]
    assert sent[2]["messages"] == sent[3]["messages"]
    say(driver, "Again?")  # without a vote A's answer stays
    last = driver.execute_script("return window.sent.at(-1).messages")
    assert [m["content"] for m in last] == [*history, ARABIC, "Again?"]
    assert "Continued with A" in find(driver, ".vote")[1].text
    assert fits(driver)
    assert driver.get_log("browser") == []
    assert Votes(votes).count == len(rows)


@pytest.mark.parametrize(
    ("texts", "reason", "words"),
    [
        (("same", "same"), "stop", "The answers are the same."),
        (("a", "b"), "length", "No answer is whole"),
        (("a", None), "stop", "There is no vote when an answer has failed."),
    ],
)
def test_there_is_no_vote_that_teaches_nothing(
    driver: Any, live: Live, texts: tuple[str | None, ...], reason: str, words: str
) -> None:
    open_page(driver, live)
    press(driver, "#compare")
    scripted(driver, *texts, reason=reason)
    say(driver, "1?")
    assert words in find(driver, ".vote")[0].text
    assert find(driver, ".vote button") == []


def test_an_empty_answer_is_never_the_better_one(driver: Any, live: Live) -> None:
    open_page(driver, live)
    press(driver, "#compare")
    scripted(driver, "", "b")
    say(driver, "1?")
    assert [button.is_enabled() for button in find(driver, ".vote button")] == [False, True]
    assert "an empty answer" in find(driver, ".foot")[0].text


def test_a_failure_is_shown_and_its_turn_left_out(driver: Any, live: Live) -> None:
    open_page(driver, live)
    scripted(driver, None, "ok", "fine")
    say(driver, "first")
    assert "the server is busy: try again later" in find(driver, ".problem")[0].text
    say(driver, "second")
    assert driver.execute_script("return window.sent[1].messages.length") == 1
    press(driver, ".again")
    wait(driver, "turns[1].answers[0].text === 'fine'")
    assert len(find(driver, ".said")) == 2
    assert len(find(driver, ".again")) == 1


def test_a_server_that_ends_in_the_middle(driver: Any, live: Live) -> None:
    open_page(driver, live)
    scripted(driver, "part", reason="")
    say(driver, "1?")
    assert "the connection ended" in find(driver, ".foot")[0].text


def test_the_keyboard_is_enough(driver: Any, live: Live) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    open_page(driver, live)
    scripted(driver, "word " * 200, delay=15)
    assert driver.switch_to.active_element.get_attribute("id") == "say"
    ActionChains(driver).send_keys("a").key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(
        Keys.SHIFT
    ).send_keys("b", Keys.ENTER).perform()
    wait(driver, "turns.length === 1 && turns[0].answers[0].text.length > 5")
    assert driver.execute_script("return turns[0].text") == "a\nb"
    ActionChains(driver).send_keys("c", Keys.ENTER).perform()  # nothing is sent meanwhile
    assert driver.execute_script("return [turns.length, say.value]") == [1, "c"]
    ActionChains(driver).send_keys(Keys.ESCAPE).perform()
    wait(driver, "!document.querySelector('.live')")
    names = []
    for _ in range(12):
        ActionChains(driver).send_keys(Keys.TAB).perform()
        active = driver.switch_to.active_element
        if active.tag_name == "body":  # the browser's own bar is in between
            continue
        names.append(active.get_attribute("id") or active.text)
        outline = active.value_of_css_property("outline-style")
        assert outline != "none" or names[-1] in ("say", "scroller", ""), names
    assert {"model-0", "compare", "fresh", "open-settings", "Copy", "Try again", "go"} <= set(names)
    find(driver, "#open-settings")[0].send_keys(Keys.ENTER)
    assert driver.switch_to.active_element.get_attribute("id") == "system"
    ActionChains(driver).send_keys(Keys.ESCAPE).perform()
    wait(driver, "!document.querySelector('dialog[open]')")
    wait(driver, "document.activeElement.id === 'say'")  # after the dialog's own event


def test_who_reads_back_is_not_pulled_down(driver: Any, live: Live) -> None:
    open_page(driver, live)
    scripted(driver, "line\n" * 120, "line\n" * 120)
    say(driver, "1?")
    bottom = "return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight"
    assert driver.execute_script(bottom) < 90, "what is written stays in sight"
    scripted(driver, "line\n" * 120, delay=5)
    say(driver, "2?", until_done=False)
    wait(driver, "turns[1].answers[0].text.length > 20")
    driver.execute_script("scroller.scrollTop = 0")
    wait(driver, "!document.querySelector('.live')")
    assert driver.execute_script("return scroller.scrollTop") == 0


def test_wrong_settings_are_marked(driver: Any, live: Live) -> None:
    open_page(driver, live)
    press(driver, "#open-settings")
    [field] = find(driver, "#temperature")
    field.clear()
    field.send_keys("-1")
    press(driver, "#settings .main")
    assert driver.execute_script("return document.getElementById('settings').open")
    field.clear()
    field.send_keys("0")
    press(driver, "#settings .main")
    assert not driver.execute_script("return document.getElementById('settings').open")
    scripted(driver, "x")
    say(driver, "1?")
    sent = driver.execute_script("return window.sent[0]")
    assert sent["temperature"] == 0
    assert "seed" not in sent
    assert sent["max_tokens"] == 128, "half of what the model takes"


def test_a_key_is_asked_for(driver: Any, folders: tuple[Path, Path]) -> None:
    with served(folders[0], key="secret") as server:
        driver.get(f"{server.url}/")
        wait(driver, "document.getElementById('ask-key').open")
        for given in ("wrong", "secret"):
            find(driver, "#key")[0].clear()
            find(driver, "#key")[0].send_keys(given)
            press(driver, "#ask-key .main")
            if given == "wrong":
                wait(driver, "document.getElementById('ask-key').open")
        wait(driver, "document.querySelectorAll('#model-0 option').length === 1")
        set_field(driver, "max_tokens", "4")
        say(driver, "1?")
        assert driver.execute_script("return turns[0].answers[0].reason") in ("stop", "length")
        assert "secret" not in driver.page_source
        press(driver, "#compare")
        scripted(driver, "a", "b")
        say(driver, "2?")
        press(driver, ".vote button")
        wait(driver, "document.querySelector('.better')")
        assert "this pick is not saved" in find(driver, ".vote")[-1].text


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_has_enough_contrast(driver: Any, live: Live, dark: bool) -> None:
    open_page(driver, live, dark=dark)
    press(driver, "#compare")
    scripted(driver, CODE, None)
    say(driver, "1?")
    found = driver.execute_script(
        r"""
        const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
          .map((c) => (c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4))
          .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
        const numbers = (color) => color.match(/[\d.]+/g).map(Number);
        const behind = (node) => {
          for (; node; node = node.parentElement) {
            const color = numbers(getComputedStyle(node).backgroundColor);
            if (color.length === 3 || color[3] > 0) return color;
          }
          return [255, 255, 255];
        };
        const kinds = '.said, .who b, .who span, .text, .text code, .facts, .problem, .vote, '
          + '.hint, button:enabled, label, h1, select';
        return [...document.querySelectorAll(kinds)].filter((n) => n.offsetParent && n.textContent)
          .map((node) => {
            const [a, b] = [light(numbers(getComputedStyle(node).color)), light(behind(node))];
            return [node.className || node.id, (Math.max(a, b) + .05) / (Math.min(a, b) + .05)];
          });
        """
    )
    assert len(found) > 12
    assert [pair for pair in found if pair[1] < 4.5] == []


def test_the_page_asks_nobody_else(live: Live) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^'\"\s)]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "innerHTML" not in text
    policy = protection(text)["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline'; connect-src 'self'" in policy
    assert "unsafe-eval" not in policy
    status, page = live.ask("GET", "/")
    assert (status, page) == (200, text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tiny", "tiny"),
        ("owner/name", "name"),
        ("/a/b/model/", "model"),
        ("results/sft_1/checkpoint-30", "sft_1/checkpoint-30"),
        ("./", "./"),
        ("/", "/"),
    ],
)
def test_names_are_shown_without_their_folders(name: str, expected: str) -> None:
    assert shown(name) == expected
