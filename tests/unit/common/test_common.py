"""What every layer uses: files that are whole, seeds, registries, suggestions, settings' errors."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.common import files, mesh
from posttrain.common.errors import SettingError, without_section
from posttrain.common.metrics import Metrics, add_metrics, combine
from posttrain.common.registry import load, look_up
from posttrain.common.seeds import mix
from posttrain.common.suggest import did_you_mean


def test_a_file_is_the_old_one_until_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    files.write_text(file, "old")

    def broken() -> None:
        with files.replacing(file) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]
    files.write_text(file, "new")
    assert file.read_text() == "new"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").read_text() == "new"


def test_what_is_no_file_is_written_to() -> None:
    files.write_text(Path(os.devnull), "x")
    assert not Path(os.devnull).is_file()


@pytest.mark.parametrize("durable", [True, False])
def test_a_folder_is_the_old_one_until_it_is_whole(tmp_path: Path, durable: bool) -> None:
    folder = tmp_path / "kept"
    with files.replacing_folder(folder, durable) as temporary:
        (temporary / "a").write_text("1")

    def full() -> None:
        with files.replacing_folder(folder) as temporary:
            (temporary / "b").write_text("2")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        full()
    assert os.listdir(folder) == ["a"]
    with files.replacing_folder(folder, durable) as temporary:
        (temporary / "c").write_text("3")
    assert os.listdir(folder) == ["c"]
    assert os.listdir(tmp_path) == ["kept"]


def test_json_has_no_nan() -> None:
    inf, nan = float("inf"), float("nan")
    assert files.finite({"a": [1.0, nan, (inf,)], 2: "x"}) == {"a": [1.0, None, [None]], "2": "x"}


@given(st.lists(st.tuples(st.integers(0, 999), st.integers(0, 999)), unique=True, min_size=2))
def test_different_places_have_different_seeds(places: list[tuple[int, int]]) -> None:
    assert len({mix(3, *place) for place in places}) == len(places)


def test_a_seed_is_the_number_that_it_was() -> None:
    """Resumed runs draw from it: worked out by hand, and from before it had a home."""
    assert mix(0, 5) == 5
    assert mix(2, 3, 4) == (2 * 1_000_003 + 3) * 1_000_003 + 4
    assert 0 <= mix(-1, 2**62, 7) < 2**63


def test_a_registry_imports_what_it_names_when_asked() -> None:
    registry = {"ordered": "collections:OrderedDict", "own": OrderedDict}
    assert look_up(registry, "ordered", "no kind 'ordered'") is OrderedDict
    assert load(registry["own"]) is OrderedDict
    with pytest.raises(ValueError, match=r"^no kind 'orderd'; did you mean ordered\?"):
        look_up(registry, "orderd", "no kind 'orderd'")


def test_the_nearest_name_or_all_of_them() -> None:
    assert did_you_mean("gsm8", ["gsm8k", "mbpp"]) == "did you mean gsm8k?"
    assert did_you_mean("zzz", ["gsm8k", "mbpp"], "choose") == "choose: gsm8k, mbpp"


def test_a_settings_error_can_be_said_in_other_words() -> None:
    error = SettingError("num_samples", "must be above 1")
    assert str(error) == "num_samples: must be above 1"
    assert str(error.renamed("--num-samples")) == "--num-samples: must be above 1"
    assert str(error.at("a.jsonl, row 3")) == "num_samples: a.jsonl, row 3: must be above 1"


def test_means_do_not_depend_on_how_they_were_split() -> None:
    parts: list[Metrics] = [
        {"loss": (2.0, 4.0), "x/max_length": (7.0, 1.0), "seen": (3.0, None)},
        {"loss": (4.0, 2.0), "x/max_length": (9.0, 1.0), "seen": (1.0, None), "none": (0.0, 0.0)},
    ]
    whole: Metrics = {}
    for part in parts:
        add_metrics(whole, part)
    assert combine([whole]) == combine(parts) == {"loss": 1.0, "x/max_length": 9.0, "seen": 4.0}


def test_keys_of_a_section_are_named_by_the_key_alone() -> None:
    for field, expected in (("distributed.timeout", "timeout"), ("model.name", "model.name")):
        with (
            pytest.raises(SettingError, match=f"^{expected}: is wrong$"),
            without_section("distributed"),
        ):
            raise SettingError(field, "is wrong")


@pytest.mark.parametrize(
    ("tensor", "sequence", "message"),
    [
        (2, 1, "distributed.tensor_parallel: 2 does not divide the 3 rank(s)"),
        (1, 4, "distributed.sequence_parallel: 4 does not divide the 3 rank(s)"),
        (
            2,
            4,
            "distributed.tensor_parallel: 2 x distributed.sequence_parallel: 4 does not divide the",
        ),
    ],
)
def test_ranks_that_form_no_shares_name_each_key(tensor: int, sequence: int, message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        mesh.check(tensor, sequence, 3)
