"""Data made by a model: what goes into the files."""

from __future__ import annotations

import pytest
from test_preference_data import making_tree, scored, user
from test_render import renderer

from posttrain import making
from posttrain.data.load import read_file


def test_a_column_that_the_first_row_lacks_is_written(tmp_path):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "answer": "4", "completion": "d"}]
    making.write_parquet(tmp_path / "made.parquet", rows, {})
    found = list(read_file(tmp_path / "made.parquet"))
    assert found == [rows[0] | {"answer": None}, rows[1]]


@pytest.mark.parametrize(("name", "values"), [("prompt", ["a", [user("b")]]), ("answer", ["4", 4])])
def test_a_column_of_two_types_is_named(name, values):
    with pytest.raises(ValueError, match=f"data: {name} has values of different types"):
        making.table_of([{name: value} for value in values])


def test_what_can_not_be_written_is_said_before_anything_is_sampled(tmp_path, monkeypatch):
    rows = [{"prompt": "a", "answer": answer} for answer in ("4", 4)]
    monkeypatch.setattr(making, "load_rows", lambda section: rows)
    monkeypatch.setattr(making, "load_for_sampling", lambda *a: (renderer("plain"), None, 64))
    config = making.parse_making(making_tree(tmp_path, tmp_path, type="filter"), "test")
    with pytest.raises(ValueError, match="data: answer has values of different types"):
        making.make(config)


def test_nothing_is_no_right_answer():
    """SFT refuses a row with an empty completion."""
    entries = scored(("", 1.0), (" ", 1.0), ("yes", 1.0))
    kept = making.right_ones(entries, making.FilterConfig(min_score=1.0))
    assert [row["completion"] for row in kept] == ["yes"]
