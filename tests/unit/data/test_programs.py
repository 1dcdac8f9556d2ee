"""Generated programs: solutions pass their tests, nearly right ones do not, splits are apart."""

import ast
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repeats import choice

from posttrain.data.generated.programs import (
    ARGUMENTS,
    FAMILIES,
    NAMES,
    NUM_TESTS,
    RL_FAMILIES,
    SEEN_FAMILIES,
    SPLITS,
    STEPS,
    load,
)
from posttrain.rewards.build import check_columns
from posttrain.rewards.code import CodeExecution, CodeReward, build
from posttrain.rewards.scoring import score
from posttrain.sandbox import pool

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def reward() -> Any:
    try:
        built = build(CodeExecution(workers=2))
    except ValueError as error:
        pytest.skip(f"programs can not be run here: {error}")
    yield built
    pool.close(built.pool)


def verdicts(reward: CodeReward, rows: Rows, programs: list[str]) -> list[str]:
    check_columns(reward, rows, "programs")
    found = score(reward, [row["prompt"] for row in rows], programs, [[] for _ in rows], rows)
    return [str(getattr(value, "verdict", None)) for value in found]


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """The family with the numbers and letters that the text names."""
    return row["family"], *re.findall(r"\d+|'\w+'", row["prompt"])


def shape(row: dict[str, Any]) -> str:
    """The body of a program without what differs from one task of a family to the next."""
    text = re.sub(r"\d+", "9", re.sub(r"'\w+'", "''", row["completion"]))
    names = "|".join([*NAMES, *(name for names in ARGUMENTS.values() for name in names)])
    return re.sub(rf"\b({names})\b", "name", text)


class Changed(ast.NodeTransformer):
    """The program with its last number one higher, or its last text with another letter."""

    def __init__(self, last: ast.Constant) -> None:
        self.last = last

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if node is not self.last:
            return node
        value = node.value
        return ast.Constant(value + 1 if isinstance(value, int) else value[:-1] + "k")


def changed(program: str) -> str | None:
    tree = ast.parse(program)
    constants = [n for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    drawn = [c for c in constants if ast.unparse(c) not in ("0", "1")]  # x % 3 == 0, s[::-1]
    return ast.unparse(Changed(drawn[-1]).visit(tree)) if drawn else None


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_every_program_passes_its_own_tests(reward: CodeReward, split: str) -> None:
    rows = load(split, num_rows=2 * len(FAMILIES), seed=5)
    found = verdicts(reward, rows, [row["completion"] for row in rows])
    assert [row for row, verdict in zip(rows, found) if verdict != "correct"] == []


def test_every_program_of_many_returns_what_the_tests_expect() -> None:
    """The same without the sandbox, which is for programs of models: these are ours."""
    for row in load("train", num_rows=3000):
        names: dict[str, Any] = {}
        exec("\n".join([row["completion"], *row["test_list"]]), names)


@pytest.mark.slow
def test_programs_that_are_nearly_right_fail(reward: CodeReward) -> None:
    rows = load("train", num_rows=len(FAMILIES), seed=6)
    programs = [changed(row["completion"]) for row in rows]
    tried = [(row, program) for row, program in zip(rows, programs) if program is not None]
    assert len(tried) == len(rows)
    found = verdicts(reward, [row for row, _ in tried], [program for _, program in tried])
    assert [pair for pair, verdict in zip(tried, found) if verdict == "correct"] == []


@pytest.mark.slow
def test_constants_the_argument_and_another_family_fail(reward: CodeReward) -> None:
    rows = load("test", num_rows=len(FAMILIES), seed=7)
    programs = []
    for i, row in enumerate(rows):
        head = row["completion"].split("\n")[0]
        argument = head.partition("(")[2].partition(")")[0]
        expected = row["test_list"][0].partition(" == ")[2]
        name = head.partition("(")[0]
        other = re.sub(r"^def \w+", name, rows[i - 1]["completion"])
        programs.append((f"{head}\n    return {expected}", f"{head}\n    return {argument}", other))
    for kind in zip(*programs):
        found = verdicts(reward, rows, list(kind))
        assert [pair for pair in zip(rows, kind, found) if pair[2] == "correct"] == []


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_short_and_whole(split: str) -> None:
    for row in load(split, num_rows=1500):
        name, argument = re.fullmatch(r"Write (\w+)\((\w+)\): .+\.", row["prompt"]).groups()  # type: ignore[union-attr]
        assert row["completion"].startswith(f"def {name}({argument}):\n    ")
        assert 2 <= len(row["completion"].split("\n")) <= 3
        assert len(row["completion"]) <= 110
        assert len(row["prompt"].split()) <= 22
        assert len(row["test_list"]) == NUM_TESTS
        for test in row["test_list"]:
            assert test.startswith(f"assert {name}(")
            assert test not in row["prompt"]


def test_families_are_in_turn_and_have_both_forms() -> None:
    rows = load("train", num_rows=12 * len(FAMILIES))
    assert [row["family"] for row in rows[: len(FAMILIES)]] == list(FAMILIES)
    for family in FAMILIES:
        mine = [row for row in rows if row["family"] == family]
        assert len(mine) == 12
        assert len({shape(row) for row in mine}) == (2 if "+" in family else 1)


def test_seen_and_rl_families_partition_all_families() -> None:
    assert sorted(SEEN_FAMILIES + RL_FAMILIES) == sorted(set(FAMILIES))
    seen = load("train", families="seen", num_rows=300)
    rl_only = load("train", families="rl_only", num_rows=300)
    assert {row["family"] for row in seen} == set(SEEN_FAMILIES)
    assert {row["family"] for row in rl_only} == set(RL_FAMILIES)
    assert not {shape(row) for row in seen} & {shape(row) for row in rl_only}


def test_rl_families_are_new_combinations_of_steps_that_are_seen_in_that_place() -> None:
    first = {family.split("+")[0] for family in SEEN_FAMILIES}
    second = {family.split("+")[1] for family in SEEN_FAMILIES if "+" in family}
    assert {step for family in FAMILIES for step in family.split("+")} == set(STEPS)
    for family in RL_FAMILIES:
        one, two = family.split("+")
        assert one in first
        assert two in second


def test_splits_share_no_task_whatever_the_seed() -> None:
    tasks = [
        {key(row) for seed in range(4) for row in load(split, num_rows=1500, seed=seed)}
        for split in SPLITS
    ]
    assert not tasks[0] & tasks[1]


@pytest.mark.parametrize("family", choice(FAMILIES, list(FAMILIES)[::4]))
def test_every_family_has_enough_tasks_on_both_sides(family: str) -> None:
    for split, fewest in (("train", 50), ("test", 10)):
        assert len({key(row) for row in load(split, families=[family], num_rows=400)}) >= fewest


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(), split=st.sampled_from(SPLITS), few=st.integers(1, 60))
def test_same_arguments_give_same_rows_and_fewer_are_a_prefix(
    seed: int, split: str, few: int
) -> None:
    rows = load(split, num_rows=60, seed=seed)
    assert load(split, num_rows=few, seed=seed) == rows[:few]
    assert len({row["prompt"] for row in rows}) == 60
    assert load(split, num_rows=60, seed=seed + 1) != rows


def test_rows_do_not_change_from_one_process_or_release_to_the_next() -> None:
    assert load("test", families=["multiply+subtract"], num_rows=1) == [
        {
            "prompt": "Write f(k): multiply k by 21, then subtract 82 from it.",
            "completion": "def f(k):\n    k = k * 21\n    return k - 82",
            "test_list": [
                "assert f(65) == 1283",
                "assert f(41) == 779",
                "assert f(32) == 590",
                "assert f(8) == 86",
            ],
            "family": "multiply+subtract",
        }
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "'dev'.*train, test"),
        ({"split": "train", "num_rows": 0}, "at least 1; got 0"),
        ({"split": "train", "families": "unseen"}, "'unseen'.*all, seen, rl_only.*add"),
        ({"split": "train", "families": ["add", "ad"]}, "families ad: .*add, subtract"),
        ({"split": "train", "families": []}, "empty.*add, subtract"),
        ({"split": "test", "families": ["add"], "num_rows": 9999}, "'add' has no new problems"),
    ],
)
def test_bad_arguments_name_the_choices(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load(**arguments)
    assert "\n" not in str(error.value)
