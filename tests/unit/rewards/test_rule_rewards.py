"""Rewards that are rules: format, length, repetition, exact match, classification."""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_rewards import MATH, make, scores

from posttrain.rewards.base import RewardFailure
from posttrain.rewards.rules.classification import key, label_pattern, stated
from posttrain.rewards.rules.exact_match import normalised
from posttrain.rewards.rules.length import cosine, soft_overlong
from posttrain.rewards.rules.repetition import repeated_share
from posttrain.rewards.score import verdict_of

# --- format ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "matches"),
    [
        ("<think>a\nb</think>c", True),
        ("\n<think></think>\n\nanswer\nof two lines\n", True),
        ("<think>a < b </thin></think>c", True),
        ("<think>a</think>", False),
        ("<think>a</think> \n", False),
        ("<think>a", False),
        ("a</think>b", False),
        ("x<think>a</think>b", False),
        ("<think>a</think>b</think>c", False),
        ("<think>a<think>b</think>c", False),
        ("<think>a</think>b<think>c</think>d", False),
        ("<THINK>a</THINK>b", False),
        ("", False),
    ],
)
def test_think_answer(completion: str, matches: bool) -> None:
    reward = make(type="format", pattern="think_answer", positive=2.0, negative=-1.0)
    assert scores(reward, [completion]) == [2.0 if matches else -1.0]


def test_think_answer_takes_linear_time() -> None:
    reward = make(type="format", pattern="think_answer")
    many = ["<think>" * 5000, "<think>" + "a" * 50_000, "<think>a</think>" + " \n" * 50_000]
    many.append("<think>a</think>" + "b " * 50_000 + "</think>")
    started = time.perf_counter()
    assert scores(reward, many) == [0.0] * 4
    assert time.perf_counter() - started < 5


def test_the_whole_completion_must_match_a_pattern_of_ones_own() -> None:
    reward = make(type="format", pattern=r"a.b")
    assert scores(reward, ["a\nb", "a b", "xa b", "a b\n", "a b c"]) == [1.0, 1.0, 0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match=r"pattern '\(' is neither a regular expression \(missing"):
        make(type="format", pattern="(")


# --- length ---------------------------------------------------------------------------------------


def test_soft_overlong_punishment_by_hand() -> None:
    # DAPO's own setting is 20480 with a cache of 4096
    by_hand = {0: 0, 16384: 0, 17408: -0.25, 18432: -0.5, 20480: -1, 20481: -1, 40000: -1}
    assert {n: soft_overlong(n, 20480, 4096) for n in by_hand} == by_hand
    assert [soft_overlong(n, 3, 0) for n in (2, 3, 4)] == [0, 0, -1]
    reward = make(type="length", kind="penalty", max_length=10, cache_length=4)
    assert scores(reward, list("abc"), [[1] * 6, [1] * 7, [1] * 99]) == [0.0, -0.25, -1.0]


def test_cosine_by_hand() -> None:
    values = [cosine(n, 12, 1.0, 0.5) for n in (0, 4, 6, 8, 12, 18, 24)]
    # halves of 1 + cos: 1, 3/4, 1/2, 1/4, 0, then constant
    assert values == pytest.approx([1.0, 0.875, 0.75, 0.625, 0.5, 0.5, 0.5])


def test_cosine_scales_correctness() -> None:
    settings: dict[str, Any] = {"kind": "cosine", "max_length": 12, "reward": MATH}
    reward = make(type="length", **settings)
    texts, answers = ["A: 7", "A: 8", "A: 7", "A: 8", "A: 7"], ["7", "7", "7", "7", ""]
    ids = [[1] * n for n in (4, 4, 12, 12, 4)]
    found = scores(reward, texts, ids, answer=answers)
    assert found == [*(pytest.approx(x) for x in (0.875, -0.875, 0.5, -0.5)), None]
    kinds = ["correct", "wrong", "correct", "wrong", None]
    assert [verdict_of(s) for s in found] == kinds
    # a shorter right answer is better, a longer wrong one too
    assert found[0] > found[2] > found[3] > found[1]
    paper = {"correct": [2, 1], "wrong": [-10, 0], "overlong": -10}
    found = scores(make(type="length", **settings, **paper), texts, ids, answer=answers)
    assert found == [pytest.approx(1.75), pytest.approx(-7.5), -10.0, -10.0, None]


def test_cosine_of_a_reward_without_verdicts_goes_by_its_sign() -> None:
    inner = {"type": "format", "pattern": "x", "positive": 0.1, "negative": 0.0}
    reward = make(type="length", kind="cosine", max_length=2, reward=inner)
    assert scores(reward, ["x", "y"], [[1], [1]]) == pytest.approx([0.75, -0.75])


@given(st.integers(1, 300), st.integers(0, 300), st.integers(0, 400))
def test_length_rewards_stay_in_bounds_and_fall(longest: int, cache: int, n: int) -> None:
    cache = min(cache, longest)
    here, further = (soft_overlong(x, longest, cache) for x in (n, n + 1))
    assert -1 <= further <= here <= 0
    assert soft_overlong(longest + 1, longest, cache) == -1
    here, further = (cosine(x, longest, 1.0, 0.5) for x in (n, n + 1))
    assert 0.5 <= further <= here <= 1.0
    assert cosine(n, longest, -1.0, -0.5) == pytest.approx(-here)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "penalty"}, "kind: penalty needs cache_length"),
        ({"kind": "cosine"}, "kind: cosine needs reward"),
        ({"kind": "penalty", "cache_length": 9}, "cache_length 9 is more than max_length 8"),
        ({"kind": "penalty", "cache_length": 1, "reward": MATH}, "reward is a key of kind: cosine"),
        ({"kind": "penalty", "cache_length": 1, "overlong": 0.0}, "overlong is a key of"),
        ({"kind": "cosine", "reward": MATH, "cache_length": 0}, "cache_length is a key of"),
        ({"kind": "cosine", "reward": {"type": "length"}}, "type is not known"),
    ],
)
def test_length_settings_that_make_no_sense(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        make(type="length", max_length=8, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"type": "length", "kind": "penalty", "max_length": 8, "cache_length": 1},
        {"type": "length", "kind": "cosine", "max_length": 8, "reward": MATH},
        {"type": "repetition"},
    ],
)
def test_texts_without_token_ids_are_refused_not_counted_as_empty(settings: Any) -> None:
    with pytest.raises(RewardFailure, match="row 2 has text but no token ids"):
        scores(make(**settings), ["a", "b"], [[1], []], answer=["7", "7"])
    assert len(scores(make(**settings), [""], [[]], answer=["7"])) == 1


# --- repetition -----------------------------------------------------------------------------------


def test_repetition_by_hand() -> None:
    reward = make(type="repetition", ngram_size=2, max_penalty=-2.0)
    ids = [[1, 2, 3, 4], [5, 5, 5, 5, 5], [1, 2, 1, 2, 1], [7], [], [7, 7]]
    # of 3, 4, 4, 0, 0, 1 pairs so many occurred before: 0, 3, 2, 0, 0, 0
    assert scores(reward, [*"abcd", "", "f"], ids) == [0.0, -1.5, -1.0, 0.0, 0.0, 0.0]


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
def test_repeated_share_counts_what_occurred_before(ids: list[int], n: int) -> None:
    grams = Counter(str(ids[i : i + n]) for i in range(max(0, len(ids) - n + 1)))
    again = sum(count - 1 for count in grams.values())
    assert repeated_share(ids, n) == pytest.approx(again / max(1, sum(grams.values())))


def test_a_repetition_bonus_is_refused() -> None:
    with pytest.raises(ValueError, match="less than or equal to 0"):
        make(type="repetition", max_penalty=0.5)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        make(type="repetition", ngram_size=0)


# --- exact match ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "answer", "verdict"),
    [
        ("Paris", "Paris", "correct"),
        ("Let me think.\nAnswer: paris.", "Paris", "correct"),
        ("The answer is **New   York**", "new york", "correct"),
        ("\\boxed{Paris}", "Paris", "correct"),
        ('Answer: "Paris"', "Paris", "correct"),
        ("Answer: ﬁsh", "fish", "correct"),
        ("Answer: Paris, France", "Paris", "wrong"),
        ("Answer: -5", "5", "wrong"),
        ("Answer: .5", "5", "wrong"),
        ("Answer: ?", "!", "wrong"),
        ("Answer: C", "C++", "wrong"),
        ("Answer: Lyon\nAnswer: Paris", "Paris", "correct"),
        ("Answer: Paris\nAnswer: Lyon", "Paris", "wrong"),
        ("", "Paris", "no_answer"),
        ("Answer: 18", 18, "correct"),
        ("Answer: NYC", ["New York", "NYC", None], "correct"),
        ("Answer: Paris", ["New York", "NYC"], "wrong"),
        ("Answer: Paris", "", None),
        ("Answer: Paris", None, None),
        ("Answer: Paris", [], None),
    ],
)
def test_exact_match(completion: str, answer: Any, verdict: str | None) -> None:
    reward = make(type="exact_match", positive=2.0, negative=-1.0)
    (found,) = scores(reward, [completion], answer=[answer])
    assert verdict_of(found) == verdict
    assert found == (None if verdict is None else 2.0 if verdict == "correct" else -1.0)


def test_exact_match_with_an_expression_and_case() -> None:
    reward = make(type="exact_match", column="gold", extract=r"<a>(.*?)</a>", ignore_case=False)
    texts = ["<a>x</a> <a> B </a>", "<a>b</a>", "B", "<a></a>", "<a>B</a> <a>c</a>"]
    found = scores(reward, texts, gold=["B"] * 5)
    assert [verdict_of(s) for s in found] == ["correct", "wrong", "no_answer", "no_answer", "wrong"]
    whole = make(type="exact_match", extract=r"\d+")
    assert scores(whole, ["1 then 2", "2 then 1"], answer=["2", "2"]) == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"extract '\[' is not a regular expression"):
        make(type="exact_match", extract="[")


def test_normalising_leaves_something() -> None:
    assert normalised(' "A  b!" ') == "a b"
    assert normalised("?!") == "?!"
    assert normalised("C++", ignore_case=False) == "C++"


# --- classification -------------------------------------------------------------------------------

FEVER = ["SUPPORTS", "REFUTES", "NOT ENOUGH INFO"]
LIAR = ["true", "mostly-true", "half-true", "barely-true", "false", "pants-fire"]


@pytest.mark.parametrize(
    ("labels", "completion", "expected"),
    [
        (FEVER, "SUPPORTS", "SUPPORTS"),
        (FEVER, "The evidence supports it, so: **REFUTES**", None),
        (FEVER, "The verdict is _supports_.", "SUPPORTS"),
        (FEVER, "It first looked like REFUTES.\nBut the page SUPPORTS this.", "SUPPORTS"),
        (FEVER, "It looked like REFUTES. But the page SUPPORTS this.", "SUPPORTS"),
        (FEVER, "SUPPORTS or REFUTES", None),
        (FEVER, "SUPPORTS, yes, SUPPORTS", "SUPPORTS"),
        (FEVER, "Answer: SUPPORTS. I rule out REFUTES.", "SUPPORTS"),
        (FEVER, "Answer: NOT ENOUGH INFO\nIt neither says so nor REFUTES it.", "NOT ENOUGH INFO"),
        (FEVER, "Not_Enough-Info", "NOT ENOUGH INFO"),
        (FEVER, "not  enough\tinfo", "NOT ENOUGH INFO"),
        (FEVER, "REFUTES\nAnswer: unclear", ""),
        (FEVER, "The answer is in the article.\nSo it REFUTES that.", "REFUTES"),
        (FEVER, "\\boxed{REFUTES}", "REFUTES"),
        (FEVER, "It UNSUPPORTS and REFUTESS", ""),
        (FEVER, "supported", ""),
        (FEVER, "NOT ENOUGH INFORMATION", ""),
        (FEVER, "", ""),
        (LIAR, "This is mostly true", "mostly-true"),
        (LIAR, "Half-True.", "half-true"),
        (LIAR, "true", "true"),
        (LIAR, "un-true or true-ish", ""),
        (LIAR, "half-true, nearly true", None),
        (LIAR, "Pants Fire!", "pants-fire"),
        (["C", "C++"], "Answer: C++", "C++"),
        (["C", "C++"], "Answer: C", "C"),
    ],
)
def test_the_label_that_is_stated(labels: list[str], completion: str, expected: Any) -> None:
    """None: ambiguous; empty: no label."""
    found = stated(completion, label_pattern(labels))
    if expected is None:
        assert len(found) == 2
    else:
        assert found == ({key(expected)} if expected else set())


def test_classification_verdicts() -> None:
    reward = make(type="classification", labels=FEVER, positive=2.0, negative=-1.0)
    texts = ["REFUTES", "SUPPORTS", "SUPPORTS or REFUTES", "maybe", "REFUTES", "not enough info"]
    found = scores(
        reward, texts, label=["REFUTES", "REFUTES", "REFUTES", "REFUTES", None, "NOT ENOUGH INFO"]
    )
    kinds = ["correct", "wrong", "ambiguous", "no_label", None, "correct"]
    assert [verdict_of(s) for s in found] == kinds
    assert found == [2.0, -1.0, -1.0, -1.0, None, 2.0]


def test_a_true_label_that_is_none_of_the_labels_names_the_row() -> None:
    reward = make(type="classification", labels=FEVER)
    with pytest.raises(ValueError, match=r"row 2 .*column label holds 'MAYBE', .*SUPPORTS, REF"):
        scores(reward, ["REFUTES", "REFUTES"], label=["REFUTES", "MAYBE"])


@pytest.mark.parametrize("labels", [["one"], ["a b", "A_b"], ["", "x"]])
def test_labels_must_differ(labels: list[str]) -> None:
    with pytest.raises(ValueError, match=r"labels must be non-empty and differ|at least 2"):
        make(type="classification", labels=labels)


@given(st.sampled_from(LIAR), st.sampled_from(LIAR), st.text(alphabet="ab ,;", max_size=20))
def test_the_last_sentence_decides(first: str, last: str, noise: str) -> None:
    text = f"{noise}\nIt may be {first}.\nI conclude: {last.upper()}. {noise}"
    assert stated(text, label_pattern(LIAR)) == {key(last)}


def test_numbers_are_finite_in_every_config() -> None:
    for settings in (
        {"type": "format", "pattern": "x", "positive": math.nan},
        {"type": "exact_match", "negative": math.inf},
        {"type": "classification", "labels": ["a", "b"], "positive": math.nan},
        {"type": "repetition", "max_penalty": -math.inf},
        {
            "type": "length",
            "kind": "cosine",
            "max_length": 1,
            "reward": MATH,
            "wrong": [0, math.nan],
        },
    ):
        with pytest.raises(ValueError, match="finite"):
            make(**settings)
