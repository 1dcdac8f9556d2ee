"""Names of metrics in MLflow: accepted, and never two alike."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.tracking.views.mlflow import LONGEST_NAME, safe_name

ALPHABET = "a_x2e5f@t./:()% é-0"


def original(name: str) -> str:
    """The name that an escaped one stands for."""
    return re.sub(
        r"_(at|x[0-9a-f]+)_", lambda m: "@" if m[1] == "at" else chr(int(m[1][1:], 16)), name
    )


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("loss", "loss"),
        ("pass@1", "pass_at_1"),
        ("pass_at_1", "pass_x5f_at_1"),
        ("completions/mean_length", "completions/mean_length"),
        ("rewards/format (mean)", "rewards/format _x28_mean_x29_"),
        ("eval_f1/a//b", "eval_f1/a_x2f_/b"),
        ("eval_f1/../x", "eval_f1/_x2e_./x"),
        ("_x29_", "_x5f_x29_"),
        ("größe", "größe"),
    ],
)
def test_names(name: str, there: str) -> None:
    assert safe_name(name) == there


@given(st.text(ALPHABET, min_size=1, max_size=30) | st.text(min_size=1, max_size=30))
def test_a_name_can_be_read_back_and_is_accepted(name: str) -> None:
    there = safe_name(name)
    if len(there) <= 200:
        assert original(there) == name
    accepted = pytest.importorskip("mlflow.utils.validation")
    accepted._validate_metric_name(there)


@given(st.text(min_size=100, max_size=400), st.text(min_size=100, max_size=400))
def test_long_names_are_cut_and_stay_different(a: str, b: str) -> None:
    assert len(safe_name(a)) <= LONGEST_NAME
    assert (safe_name(a) == safe_name(b)) == (a == b)
