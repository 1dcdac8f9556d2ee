"""The name that a mistyped one most likely stands for."""

from __future__ import annotations

import itertools

import pytest

from posttrain.algorithms import ALGORITHMS
from posttrain.common.suggest import did_you_mean, nearest
from posttrain.data.sets import DATASETS
from posttrain.rewards import REWARDS


@pytest.mark.parametrize(
    ("typed", "known", "expected"),
    [
        ("SFT", ALGORITHMS, "sft"),
        ("Kto", ALGORITHMS, "kto"),
        ("reward", ALGORITHMS, "reward_model"),
        ("sfd", ALGORITHMS, "sft"),
        ("math", REWARDS, "math_correctness"),
        ("code", REWARDS, "code_execution"),
        ("exact", REWARDS, "exact_match"),
        ("judg", REWARDS, "judge"),
        ("gsm", DATASETS, "gsm8k"),
        ("zzzz", DATASETS, None),
        ("", REWARDS, None),
        (None, REWARDS, None),
    ],
)
def test_the_nearest_name(typed: object, known: dict[str, str], expected: str | None) -> None:
    assert nearest(typed, known) == expected


@pytest.mark.parametrize("known", list(itertools.permutations(["epsilon", "epsilon_high", "eps_"])))
def test_the_order_of_the_names_does_not_matter(known: tuple[str, ...]) -> None:
    """The known keys of a section come as a set, whose order differs from run to run."""
    assert nearest("epsilo", known) == "epsilon"


def test_a_name_that_is_near_to_none_gets_all() -> None:
    assert did_you_mean("zzzz", ["a", "b"], "stages") == "stages: a, b"
