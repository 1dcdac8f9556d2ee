"""Word problems with faults in their solutions: every label is what a reader would say."""

from __future__ import annotations

import re

import pytest
from test_word_problems import MARK, evaluate

from posttrain.data.generated import word_problem_steps, word_problems

SPLITS = word_problems.SPLITS


@pytest.mark.parametrize("split", SPLITS)
def test_a_step_is_right_where_it_and_all_before_it_are_those_of_the_right_solution(split):
    rows = word_problem_steps.load(split, num_rows=2000, seed=3)
    for row, problem in zip(rows, word_problems.load(split, num_rows=2000, seed=3), strict=True):
        assert {**problem, "completion": 0} == {
            **{k: v for k, v in row.items() if k not in ("completions", "labels")},
            "completion": 0,
        }
        right, steps, labels = problem["completion"].split("\n"), row["completions"], row["labels"]
        assert len(steps) == len(right) == len(labels)
        same = [a == b for a, b in zip(steps, right)]
        assert labels == [all(same[: i + 1]) for i in range(len(same))]
        assert (steps[-1] == f"#### {row['answer']}") == labels[-1]
        if not labels[-1]:
            fault = labels.index(False)
            # it says another number, and not only another way to the same one
            assert result(steps[fault]) != result(right[fault])


def result(line: str) -> int:
    return int(re.findall(r"\d+", line)[-1])


def test_a_fault_is_of_every_kind_and_later_steps_go_on_with_it():
    kinds = {"slip": 0, "other calculation": 0, "answer": 0}
    followed = 0
    for row, problem in zip(
        word_problem_steps.load("train", num_rows=2000),
        word_problems.load("train", num_rows=2000),
    ):
        if all(row["labels"]):
            continue
        fault = row["labels"].index(False)
        for i, line in enumerate(row["completions"][:-1]):
            left, sign, right, *inside, value, after = MARK.findall(line)[0]
            assert [left, sign, right, value] == [*inside, after]
            if i != fault:
                assert int(value) == evaluate(int(left), sign, int(right)) // 1
        if fault == len(row["labels"]) - 1:
            kinds["answer"] += 1
            continue
        left, sign, right, *_, value = MARK.findall(row["completions"][fault])[0]
        slip = int(value) != evaluate(int(left), sign, int(right)) // 1
        kinds["slip" if slip else "other calculation"] += 1
        before = MARK.findall(problem["completion"].split("\n")[fault])[0][-1]
        following = row["completions"][fault + 1]
        followed += re.search(rf"\b{value}\b", following) is not None
        assert before != value
    assert min(kinds.values()) > 100, kinds
    assert followed > 0.9 * (kinds["slip"] + kinds["other calculation"])


def test_half_of_the_solutions_are_right_in_every_family():
    rows = word_problem_steps.load("train", num_rows=3000)
    share = sum(row["labels"][-1] for row in rows) / len(rows)
    assert 0.47 < share < 0.53
    for family in word_problems.FAMILIES:
        own = [row["labels"][-1] for row in rows if row["family"] == family]
        assert 0.3 < sum(own) / len(own) < 0.7, family


def test_rows_follow_from_the_seed_and_fewer_are_the_first_of_more():
    rows = word_problem_steps.load("train", num_rows=60, seed=1)
    assert word_problem_steps.load("train", num_rows=40, seed=1) == rows[:40]
    assert word_problem_steps.load("train", num_rows=60, seed=2) != rows
