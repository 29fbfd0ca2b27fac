"""Rows -> rich tables for the terminal. All names are user text: they are drawn as `Text`, never read as markup."""

from __future__ import annotations

from collections.abc import Sequence

from rich.bar import Bar
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from metaprune.report.rows import Record, budget_rows, group_rows, headline, masks_text, summary_rows
from metaprune.report.section import Section

_BAR_WIDTH = 20
_WIDEST = 1000  # characters


def summary_table(record: Record) -> Table:
    """Before and after, one row per figure; empty where the record holds none."""
    table = Table(title_justify="left", header_style="bold")
    table.add_column("")
    for name in ("before", "after", "change", "factor"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary_rows(record):
        cells = (row.label, row.before, row.after, row.change, row.factor)
        table.add_row(*(Text(cell, style="bold" if i == 2 else "") for i, cell in enumerate(cells)))
    return table


def groups_table(record: Record) -> Table:
    """Tabulate channels of every group before and after, with the share kept."""
    table = Table(header_style="bold")
    table.add_column("group", overflow="fold")
    for name in ("before", "after", "kept"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", width=_BAR_WIDTH, no_wrap=True)
    for row in group_rows(record):
        numbers = (Text(str(row.before)), Text(str(row.after), style="bold"), Text(row.kept_text))
        table.add_row(Text(row.name), *numbers, Bar(1.0, 0, min(row.kept, 1.0), width=_BAR_WIDTH, color="blue"))
    return table


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> Table:
    """Tabulate text; all but the first `texts` columns are numbers."""
    table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i < texts else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def print_whole(table: Table, console: Console) -> None:
    """Print a table as wide as it is: where the terminal is narrower, lines go on below, and no figure is left out."""
    console.width = max(console.width, console.measure(table, options=console.options.update(width=_WIDEST)).maximum)
    console.print(table)


def print_summary(record: Record, console: Console, sections: Sequence[Section] = ()) -> None:
    """Print the headline, the table, what the method tells, what masks are not, and whether every bound was met."""
    console.print(Text(headline(record), style="bold"))
    table = summary_table(record)
    if table.row_count:
        console.print(table)
    for section in sections:
        if section.closing:
            console.print(Text(section.closing))
    masked = masks_text(record)
    if masked:
        console.print(Text(f"{masked}."))
    for row in budget_rows(record):
        state = "not measured" if row.met is None else f"reached {row.reached}, {'met' if row.met else 'NOT met'}"
        style = "red" if row.met is False else ""
        console.print(Text(f"Budget: {row.metric} at most {row.bound}: {state}", style=style))
