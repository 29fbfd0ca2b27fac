"""The report's section on a search."""

from __future__ import annotations

from metaprune.methods.pruningnet.report_plots import search_figures
from metaprune.methods.pruningnet.report_rows import fact_rows, search_text
from metaprune.report.rows import Record
from metaprune.report.section import Section


def section(record: Record) -> Section | None:
    """Tell what was trained and searched; None of a record without a search."""
    text, facts, figures = search_text(record), fact_rows(record), search_figures(record)
    return Section("search", "Search", text, facts, figures, closing=text) if text or facts or figures else None
