"""The report's section on STAMP."""

from __future__ import annotations

from metaprune.methods.stamp.report_plots import stamp_figures
from metaprune.methods.stamp.report_rows import closing_text, fact_rows, stamp_text
from metaprune.report.rows import Record
from metaprune.report.section import Section


def section(record: Record) -> Section | None:
    """Tell what was learned, and how it was adapted; None of a record of other methods."""
    text, facts, figures = stamp_text(record), fact_rows(record), stamp_figures(record)
    return Section("stamp", "STAMP", text, facts, figures, closing_text(record)) if text or facts or figures else None
