"""Pieces of HTML that the sections of the report share."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape


def escaped(value: object) -> str:
    """The value as text, escaped for an element or a quoted attribute."""
    return escape(str(value), quote=True)


def table(heads: Iterable[str | tuple[str, str]], rows: Iterable[str]) -> str:
    """A table of rows, which are HTML, under heads: a text, or a text and its CSS class."""
    titles = "".join(
        f"<th>{escaped(head)}</th>" if isinstance(head, str) else f'<th class="{head[1]}">{escaped(head[0])}</th>'
        for head in heads
    )
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def table_row(cells: Iterable[object], css_class: str = "") -> str:
    """A row of cells, which are text."""
    attribute = f' class="{css_class}"' if css_class else ""
    return f"<tr{attribute}>{''.join(f'<td>{escaped(cell)}</td>' for cell in cells)}</tr>"


def format_time(ms: int | None) -> str:
    """The time in UTC, to the minute; a dash for None."""
    return "-" if ms is None else datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
