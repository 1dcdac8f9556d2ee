"""What a notebook shows of a result: tables as text and as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text


def table_as_text(table: Table) -> str:
    """Return a table of rich as lines of plain text."""
    console = Console(file=StringIO(), width=120, force_jupyter=False, color_system=None)
    console.print(table)
    assert isinstance(console.file, StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).strip("\n")


def table_as_html(table: Table) -> str:
    """Return a table of rich as HTML; its cells are texts."""
    right = [column.justify == "right" for column in table.columns]
    rows = zip(*([plain(cell) for cell in column.cells] for column in table.columns))
    return html_table(rows, [plain(column.header) for column in table.columns], right)


def html_table(
    rows: Iterable[Sequence[str]], header: Sequence[str] = (), right: Sequence[bool] = ()
) -> str:
    """Return rows of texts as an HTML table, everything in them escaped.

    `right` has an entry for each column: whether its cells are aligned to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        sides = ["right" if i < len(right) and right[i] else "left" for i in range(len(cells))]
        return "".join(
            f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>'
            for cell, side in zip(cells, sides)
        )

    head = f"<thead><tr>{line(header, 'th')}</tr></thead>" if header else ""
    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table>{head}<tbody>{body}</tbody></table>"


def preformatted(lines: Iterable[str]) -> str:
    """Return lines as HTML that keeps their columns; nothing without lines."""
    text = escape("\n".join(lines))
    return f'<pre style="font-family: monospace">{text}</pre>' if text else ""


def plain(cell: object) -> str:
    """Return a cell of a rich table without its markup."""
    return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain
