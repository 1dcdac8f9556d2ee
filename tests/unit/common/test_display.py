"""Tables for notebooks."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from posttrain.common.display import html_table, preformatted, table_as_html, table_as_text


class Reader(HTMLParser):
    """The tags of a page and its texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_table_of_rich_in_both_forms() -> None:
    table = Table(box=SIMPLE)
    table.add_column("task")
    table.add_column("[bold]accuracy[/bold]", justify="right")
    table.add_row("a <b> & c", "51.0 %")
    table.add_row(Text("[d]"), "")
    page = Reader(table_as_html(table))
    assert page.texts == ["task", "accuracy", "a <b> & c", "51.0 %", "[d]"]
    assert set(page.tags) == {"table", "thead", "tbody", "tr", "th", "td"}
    assert table_as_html(table).count("text-align: right") == 3
    text = table_as_text(table).splitlines()
    assert text[0].split() == ["task", "accuracy"]
    assert text[2].split() == ["a", "<b>", "&", "c", "51.0", "%"]
    assert not any(line.endswith(" ") for line in text)


@given(st.lists(st.lists(st.text(), max_size=4), max_size=4), st.lists(st.text(), max_size=3))
def test_whatever_the_cells_hold_is_text(rows: list[list[str]], header: list[str]) -> None:
    page = Reader(html_table(rows, header, [True]))
    assert set(page.tags) <= {"table", "thead", "tbody", "tr", "th", "td"}
    assert page.tags.count("td") == sum(map(len, rows))
    assert page.tags.count("th") == len(header)


@pytest.mark.parametrize("lines", [["a  b", "<script>"], ["&amp;"]])
def test_lines_keep_their_columns(lines: list[str]) -> None:
    page = Reader(preformatted(lines))
    assert page.tags == ["pre"]
    assert "".join(page.texts) == "\n".join(lines)


def test_no_lines_are_nothing() -> None:
    assert preformatted([]) == ""
    assert table_as_text(Table()) == ""
