"""Every completion gets a verdict within its bound, whatever is in it and however long it is.

The completions are made of what the readers look for (markers, boxes, brackets, numbers, words) and
of what breaks readers (lone surrogates, NUL, combining marks, reordering), once or repeated to a
MiB. `-m slow` runs the large set.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.rewards.build import build_reward, config_of
from posttrain.rewards.rules import math_worker
from posttrain.rewards.rules.math import VERDICTS, check, stated_answer, stated_number
from posttrain.rewards.score import verdict_of

MIB = 1 << 20
SECONDS = 2.0  # of this process, for a MiB; the slowest takes half a second on one core

PIECES = [
    *(
        "\\boxed{",
        "\\fbox {",
        "}",
        "{",
        "#### ",
        "####",
        "\n#### 5",
        "Answer: ",
        "A:",
        "Final Answer:",
    ),
    *(
        "the answer is ",
        "my answer is",
        "$",
        "$$",
        "\\(",
        "\\)",
        "\\[",
        "\\]",
        " ",
        "\n",
        "\t",
        "\r",
    ),
    *(
        "or ",
        "and ",
        "not ",
        "no, ",
        "maybe ",
        "dozen ",
        "percent",
        "%",
        "5",
        "1,000",
        "3.14",
        "1/2 ",
    ),
    *(
        "1e9",
        "-",
        "–",
        "±",
        "½",
        "²",
        "\u0665",
        "x",
        "a",
        "the ",
        "\\frac{",
        "\\text{",
        "\\\\",
        "\\",
    ),
    *("^", "_", "(", ")", "[", "]", ",", ";", "=", "<", ">", "≈", "\\le ", "\\in ", "\\cup ", "!"),
    *("<answer>", "</answer>", "<think>", "</think>", "**", "`", "'", '"', "~", "&", "\\pm "),
    *(
        "\\begin{pmatrix}",
        "\\end{pmatrix}",
        "\\sqrt{",
        "sorry",
        "I cannot",
        "not enough info",
        "true",
    ),
    *(
        "\u202e",
        "\u200b",
        "\ufeff",
        "\ud800",
        "\udfff",
        "\x00",
        "\x1b",
        "\u0301",
        "\u0316",
        "\u2028",
    ),
    *("\U0001f600", "ﬁ", "\u0130", "\u1112\u1161\u11ab", "ß"),
]


def completions(longest: int) -> st.SearchStrategy[str]:
    """Pieces and any characters, once, some times, or as often as the length allows."""
    part = st.sampled_from(PIECES) | st.text(st.characters(), max_size=5)
    body = st.lists(part, max_size=10).map("".join)
    times = st.sampled_from([1, 1, 2, 40, longest])
    return st.builds(
        lambda head, text, n, tail: (head + text * min(n, longest // max(1, len(text)))) + tail,
        body, body, times, body,
    )  # fmt: skip


RULES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "exact_match": ({}, {"answer": "5"}),
    "exact_match by pattern": ({"extract": "(?s).+"}, {"answer": "5"}),
    "classification": ({"labels": ["true", "mostly true", "not enough info"]}, {"label": "true"}),
    "format": ({"pattern": "think_answer"}, {}),
    "refusal xstest": ({"rule": "xstest"}, {}),
    "refusal advbench": ({"rule": "advbench"}, {}),
    "repetition": ({}, {}),
    "length": ({"kind": "penalty", "max_length": 9, "cache_length": 3}, {}),
}


def _judge(name: str, text: str) -> None:
    keys, columns = RULES[name]
    kind = name.split()[0]
    reward = build_reward(config_of(kind).model_validate({"type": kind, **keys}))
    ids = [ord(character) for character in text]
    began = time.process_time()
    scores: Any = reward(["p"], [text], [ids], **{key: [value] for key, value in columns.items()})
    assert time.process_time() - began < SECONDS
    assert len(scores) == 1
    assert isinstance(scores[0], float)


def _check(text: str, gold: str) -> None:
    began = time.process_time()
    number = stated_number(stated_answer(text))
    verdict = check(text, gold, timeout=0.5)
    assert time.process_time() - began < SECONDS  # the worker has its own limit
    assert verdict in VERDICTS
    assert verdict != "unparseable_gold"
    assert number is None or number.value == number.value


@pytest.fixture(scope="module", autouse=True)
def _end_worker() -> Iterator[None]:
    yield
    math_worker.close()


QUICK = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
LARGE = settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", RULES)
@QUICK
@given(text=completions(3000))
def test_a_rule_judges_any_completion(name: str, text: str) -> None:
    _judge(name, text)


@QUICK
@given(
    text=completions(3000), gold=st.sampled_from(["5", "18 meters", "\\sqrt{2}", "(1, 2)", "no"])
)
def test_the_math_reward_judges_any_completion(text: str, gold: str) -> None:
    _check(text, gold)


@given(text=completions(400))
@QUICK
def test_any_reference_is_judged(text: str) -> None:
    assert check("\\boxed{5}", text, timeout=0.5) in VERDICTS


# What was quadratic in some reader, or could be: combining marks out of order, unclosed brackets.
LONG = [
    "\u0301\u0316",
    "\\boxed{",
    "\\text{and ",
    "the answer is ",
    "A: ",
    "#### 5\n",
    "<answer>",
    "5 ",
]


@pytest.mark.parametrize("piece", LONG)
def test_a_mib_is_judged_in_linear_time(piece: str) -> None:
    text = piece * (MIB // len(piece))
    for name in RULES:
        if name not in ("repetition", "length"):  # these read no text
            _judge(name, text)
    _check(text, "5")


@pytest.mark.slow
@pytest.mark.parametrize("longest", [3000, 30_000, MIB])
@pytest.mark.parametrize("name", RULES)
@LARGE
@given(data=st.data())
def test_a_rule_judges_any_completion_of_any_length(name: str, longest: int, data: Any) -> None:
    _judge(name, data.draw(completions(longest)))


@pytest.mark.slow
@pytest.mark.parametrize("longest", [3000, 30_000, MIB])
@pytest.mark.parametrize("gold", ["5", "18 meters", "\\sqrt{2}", "(1, 2)", "x < 5"])
@LARGE
@given(data=st.data())
def test_the_math_reward_judges_any_completion_of_any_length(
    gold: str, longest: int, data: Any
) -> None:
    _check(data.draw(completions(longest)), gold)


def test_a_verdict_names_what_was_found() -> None:
    reward = build_reward(config_of("math_correctness").model_validate({}))
    scores: Any = reward(["p"] * 2, ["\\boxed{5}", "\ud800"], [[1]] * 2, answer=["5", "5"])
    assert [verdict_of(score) for score in scores] == ["correct", "unparseable_prediction"]
