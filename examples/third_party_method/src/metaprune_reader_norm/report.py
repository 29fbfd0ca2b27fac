"""The report's section: which groups shrank most."""

from __future__ import annotations

from metaprune.report.rows import Record, group_rows
from metaprune.report.section import FactRow, Section


def section(record: Record) -> Section | None:
    """The three groups that lost most; None of other methods."""
    if record.get("method") != "reader_norm":
        return None
    rows = sorted(group_rows(record), key=lambda row: row.kept)[:3]
    facts = [FactRow(row.name, row.kept_text, f"{row.after} of {row.before} channels") for row in rows]
    return Section("reader-norm", "Reader norm", "The groups whose channels are read least", facts)
