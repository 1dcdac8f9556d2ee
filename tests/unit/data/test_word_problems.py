import re
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.generated import word_problems
from posttrain.data.generated.word_problems import (
    FAMILIES,
    LONGER_FAMILIES,
    NAMES,
    RL_FAMILIES,
    SEEN_FAMILIES,
    SPLITS,
    THINGS,
    load,
)

MARK = re.compile(r"(\d+)([-+*/])(\d+) = <<(\d+)([-+*/])(\d+)=(\d+)>>(\d+) ")

# The answer from the numbers in the question, in the order in which it names them.
EXPECTED = {
    "buy": lambda a, b: a + b,
    "give": lambda a, b: a - b,
    "groups": lambda a, b: a * b,
    "share": lambda a, b: a / b,
    "price": lambda a, b: a * b,
    "buy_twice": lambda a, b, c: a + b + c,
    "groups_give": lambda a, b, c: a * b - c,
    "double_buy": lambda a, b: 2 * a + b,
    "half_buy": lambda a, b: a / 2 + b,
    "three_people": lambda a, b, c: a + b + c,
    "change": lambda a, b, c: a - b * c,
    "pages": lambda a, b, c: a - b * c,
    "two_groups": lambda a, b, c, d: a * b + c * d,
    "week_give": lambda a, b, c: a + 7 * b - c,
    "double_more": lambda a, b: a + 2 * a + (2 * a + b),
    "shopping": lambda a, b, c, d, e: a - b * c - d * e,
    "buy_give": lambda a, b, c: a + b - c,
    "buy_share": lambda a, b, c: (a + b) / c,
    "give_share": lambda a, b, c: (a - b) / c,
    "groups_buy": lambda a, b, c: a * b + c,
    "groups_share": lambda a, b, c: a * b / c,
    "double_give": lambda a, b: 2 * a - b,
    "groups_give_buy": lambda a, b, c, d: a * b - c + d,
    "give_spend": lambda a, b, c, d: a - b - c * d,
    "half_more": lambda a, b: a + a / 2 + (a / 2 + b),
    "give_twice": lambda a, b, c: a - b - c,
    "give_buy": lambda a, b, c: a - b + c,
    "half_give": lambda a, b: a / 2 - b,
    "groups_buy_give": lambda a, b, c, d: a * b + c - d,
    "week_buy": lambda a, b, c: a + 7 * b + c,
    "long_trade": lambda a, b, c, d, e, f: a * b + c - d + e - f,
    "four_people": lambda a, b, c: a + 2 * a + (2 * a + b) + (2 * a + b + c),
}


def evaluate(left: int, sign: str, right: int) -> float:
    if sign == "/":
        return left / right
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def numbers_in(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def key(row: dict) -> tuple:
    return row["family"], numbers_in(row["prompt"])


def steps_of(row: dict) -> list[str]:
    return row["completion"].split("\n")[:-1]


def shape(sentence: str) -> str:
    """The sentence without what differs from one problem to the next."""
    sentence = re.sub(r"\d+", "9", sentence)
    sentence = re.sub(rf"\b({'|'.join(NAMES)})\b", "Name", sentence)
    return re.sub(rf"\b({'|'.join(THINGS)}|dollars|pages)\b", "things", sentence)


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict]]:
    return {split: load(split, num_rows=2700) for split in SPLITS}


@pytest.mark.parametrize("split", SPLITS)
def test_every_step_is_right_and_follows_from_the_question(rows, split):
    for row in rows[split]:
        told = numbers_in(row["prompt"])
        known = {*told, 2, 7}  # twice, half, and the days of a week
        used = set()
        for line in steps_of(row):
            marks = MARK.findall(line)
            assert len(marks) == 1, line
            left, sign, right, *inside, value, after = marks[0]
            assert [left, sign, right] == inside
            assert evaluate(int(left), sign, int(right)) == int(value) == int(after)
            assert {int(left), int(right)} <= known
            used |= {int(left), int(right)}
            known.add(int(value))
            assert int(value) >= 2
        assert set(told) <= used
        assert row["completion"].split("\n")[-1] == f"#### {value}"
        assert row["answer"] == value


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_what_the_question_asks_for(rows, split):
    for row in rows[split]:
        assert EXPECTED[row["family"]](*numbers_in(row["prompt"])) == int(row["answer"]), row


@pytest.mark.parametrize("split", SPLITS)
def test_steps_go_on_from_what_their_person_has(rows, split):
    for row in rows[split]:
        prompt, steps = row["prompt"], steps_of(row)
        held = dict(re.findall(r"(\w+) (?:has|starts with) (\d+) (?!more|boxes)", prompt))
        for step in steps:
            for name, left, sign, value in re.findall(r"(\w+) has (\d+)([-+*/]).*>>(\d+)", step):
                if sign in "+-" and name in held:
                    assert held[name] == left, row
                held[name] = value
        for name in re.findall(r"does ([A-Z]\w+)", prompt):
            assert steps[-1].startswith(name), row


def test_every_family_is_there_and_equally_often(rows):
    assert {row["family"] for row in rows["train"]} == set(FAMILIES)
    assert {row["family"] for row in rows["test_harder"]} == {*FAMILIES, *LONGER_FAMILIES}
    counts = [sum(row["family"] == family for row in rows["train"]) for family in FAMILIES]
    assert max(counts) - min(counts) <= 1
    assert len(FAMILIES) >= 20


def test_seen_and_rl_families_partition_all_families():
    assert sorted(SEEN_FAMILIES + RL_FAMILIES) == sorted(FAMILIES)
    assert not set(LONGER_FAMILIES) & set(FAMILIES)
    seen = load("train", families="seen", num_rows=200)
    rl_only = load("train", families="rl_only", num_rows=200)
    assert {row["family"] for row in seen} == set(SEEN_FAMILIES)
    assert {row["family"] for row in rl_only} == set(RL_FAMILIES)


def test_training_problems_have_one_to_four_steps_and_small_numbers(rows):
    for split in ("train", "test"):
        assert {len(steps_of(row)) for row in rows[split]} == {1, 2, 3, 4}
        for row in rows[split]:
            assert max(numbers_in(row["prompt"] + row["completion"])) <= 120
            for left, sign, right, *_ in MARK.findall(row["completion"]):
                if sign == "*" and int(left) != 2:
                    assert max(int(left), int(right)) <= 10
    for families in ("seen", "rl_only"):
        assert {len(steps_of(row)) for row in load("train", families=families)} >= {2, 3, 4}


def test_harder_problems_are_longer_or_larger(rows):
    for row in rows["test_harder"]:
        if row["family"] in LONGER_FAMILIES:
            assert len(steps_of(row)) >= 5
    for family, smallest in {"buy": 21, "three_people": 21, "groups": 24, "share": 12}.items():
        harder = load("test_harder", families=[family], num_rows=50)
        assert min(max(numbers_in(row["prompt"] + row["answer"])) for row in harder) >= smallest


def test_prompts_are_short(rows):
    lengths = [len(row["prompt"].split()) for split in SPLITS for row in rows[split]]
    assert min(lengths) >= 15
    assert max(lengths) <= 50


def test_splits_share_no_problem_whatever_the_seed():
    keys = {
        split: {key(row) for seed in range(4) for row in load(split, num_rows=1500, seed=seed)}
        for split in SPLITS
    }
    for split, other in pairwise([*SPLITS, SPLITS[0]]):
        assert not keys[split] & keys[other]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_enough_problems_on_both_sides(family):
    for split, fewest in (("train", 50), ("test", 10)):
        drawn = load(split, families=[family], num_rows=400)
        assert len({key(row) for row in drawn}) >= fewest
        assert len({shape(row["prompt"]) for row in drawn}) >= 4


def test_rl_only_families_use_the_words_and_sentences_of_seen_ones():
    seen = load("train", families="seen", num_rows=3000)
    rl_only = load("train", families="rl_only", num_rows=1000)
    for part in ("prompt", "completion"):
        vocabulary = words(" ".join(row[part] for row in seen))
        assert words(" ".join(row[part] for row in rl_only)) <= vocabulary
        split_at = re.compile(r"(?<=[.?])\s")
        sentences = {shape(text) for row in seen for text in split_at.split(row[part])}
        assert len(sentences) > 5
        assert {shape(text) for row in rl_only for text in split_at.split(row[part])} <= sentences


def test_rl_only_families_are_new_combinations():
    seen, rl_only = (
        {shape(row["prompt"]) for row in load("train", families=families, num_rows=2000)}
        for families in ("seen", "rl_only")
    )
    assert not seen & rl_only


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(), split=st.sampled_from(SPLITS), few=st.integers(1, 60))
def test_same_arguments_give_same_rows_and_fewer_are_a_prefix(seed, split, few):
    rows = load(split, num_rows=60, seed=seed)
    assert load(split, num_rows=few, seed=seed) == rows[:few]
    assert len({row["prompt"] for row in rows}) == 60
    assert load(split, num_rows=60, seed=seed + 1) != rows


def test_rows_do_not_change_from_one_process_or_release_to_the_next():
    numbers = [numbers_in(row["prompt"]) for row in load("test", families=["buy"], num_rows=6)]
    assert numbers == [(20, 7), (20, 7), (13, 5), (5, 17), (4, 17), (18, 19)]


def test_ten_thousand_rows_take_about_a_second():
    start = time.perf_counter()
    rows = load("train", num_rows=10_000)
    assert time.perf_counter() - start < 3
    assert len({row["prompt"] for row in rows}) == 10_000


def test_an_exhausted_family_says_so(monkeypatch):
    def always_the_same(story, numbers):
        story.buys(story.has(4), 3)

    monkeypatch.setitem(FAMILIES, "buy", always_the_same)
    monkeypatch.setattr(word_problems, "NAMES", NAMES[:5])
    monkeypatch.setattr(word_problems, "THINGS", THINGS[:2])
    with pytest.raises(
        ValueError, match=r"'buy' has no new problems .* after [1-9].* lower num_rows"
    ):
        load("train", families=["buy"], num_rows=1_000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "'dev'.*train, test, test_harder"),
        ({"split": "train", "num_rows": 0}, "at least 1; got 0"),
        ({"split": "train", "families": "unseen"}, "'unseen'.*all, seen, rl_only.*buy"),
        ({"split": "train", "families": ["buy", "bye"]}, "families bye: .*buy, give"),
        ({"split": "train", "families": ["long_trade"]}, "long_trade.*for split 'train'"),
        ({"split": "train", "families": []}, "empty.*buy, give"),
    ],
)
def test_bad_arguments_name_the_choices(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        load(**arguments)
    assert "\n" not in str(error.value)
