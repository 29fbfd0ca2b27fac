"""What a run achieved, as rows of plain data, a page, and terminal tables.

Names are bound on first use: `metaprune.report.rows` needs neither plotly nor jinja2.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "groups_table": "metaprune.report.text",
    "print_summary": "metaprune.report.text",
    "render_report": "metaprune.report.html",
    "summary_table": "metaprune.report.text",
    "write_report": "metaprune.report.html",
}

if TYPE_CHECKING:
    from metaprune.report.html import render_report, write_report
    from metaprune.report.text import groups_table, print_summary, summary_table

__all__ = ["groups_table", "print_summary", "render_report", "summary_table", "write_report"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'metaprune.report' has no attribute {name!r}")
