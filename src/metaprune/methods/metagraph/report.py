"""The report's section on the graph metanetwork."""

from __future__ import annotations

from metaprune.methods.metagraph.report_plots import metagraph_figures
from metaprune.methods.metagraph.report_rows import fact_rows, metagraph_text
from metaprune.report.rows import Record
from metaprune.report.section import Section


def section(record: Record) -> Section | None:
    """Tell what was rewritten, step by step; None of a record of other methods."""
    text = metagraph_text(record)
    return (
        Section("metagraph", "Graph metanetwork", text, fact_rows(record), metagraph_figures(record)) if text else None
    )
