"""Sizes in words."""

import pytest

from posttrain.common.sizes import in_bytes, in_units, millions, rate


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.0 KiB"),
        (50 * 2**20, "50.0 MiB"),
        (2**30 - 2**20, "1,023.0 MiB"),
        (1.25 * 2**40, "1,280.0 GiB"),
    ],
)
def test_bytes_are_in_the_largest_unit_of_which_there_is_one(size: float, words: str) -> None:
    assert in_bytes(size) == words


def test_units_are_decimal() -> None:
    assert [in_units(x, "FLOP") for x in (0.0, 12, 1.2e5, 3.4e6, 5e12)] == [
        "0 FLOP",
        "12 FLOP",
        "120.0 kFLOP",
        "3.4 MFLOP",
        "5,000.0 GFLOP",
    ]


def test_small_counts_and_rates_are_shown() -> None:
    assert [millions(n) for n in (20_992, 8_030_300_000)] == ["20,992", "8,030.3M"]
    assert [rate(x) for x in (0.04, 2.5, 1234.5)] == ["0.04", "2.5", "1,234"]
