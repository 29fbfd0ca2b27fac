"""The report as one HTML file: no network, no other file, all user text escaped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from metaprune.core.files import whole_file
from metaprune.methods.metagraph import report_rows as metagraph_rows
from metaprune.methods.metagraph.report_plots import metagraph_figures
from metaprune.methods.pruningnet import report_rows as search_rows
from metaprune.methods.pruningnet.report_plots import search_figures
from metaprune.methods.stamp import report_rows as stamp_rows
from metaprune.methods.stamp.report_plots import stamp_figures
from metaprune.report import rows as data
from metaprune.report.plots import figures
from metaprune.report.units import cost_noun, duration

_HERE = Path(__file__).parent
_OPEN_GROUPS = 30  # a longer table of groups starts folded


def render_report(record: data.Record) -> str:
    """The page's text. `record` is a run's record.json; all of its parts may be missing."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    drawn = [_drawn(key, caption, figure) for key, caption, figure in figures(record)]
    searched = [_drawn(key, caption, figure, note) for key, caption, note, figure in search_figures(record)]
    stamped = [_drawn(key, caption, figure, note) for key, caption, note, figure in stamp_figures(record)]
    rewritten = [_drawn(key, caption, figure, note) for key, caption, note, figure in metagraph_figures(record)]
    space = record.get("space") or {}
    groups = data.group_rows(record)
    return environment.get_template("report.html.jinja").render(
        css=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()) if drawn or searched or stamped or rewritten else "",
        title=data.title(record),
        headline=data.headline(record).replace(" -> ", " → "),
        facts=_facts(record),
        summary=data.summary_rows(record),
        budgets=data.budget_rows(record),
        masks_text=data.masks_text(record),
        figures=drawn,
        search_title=search_rows.section_title(record),
        search_text=search_rows.search_text(record),
        search_facts=search_rows.fact_rows(record),
        search_figures=searched,
        stamp_text=stamp_rows.stamp_text(record),
        stamp_facts=stamp_rows.fact_rows(record),
        stamp_figures=stamped,
        metagraph_text=metagraph_rows.metagraph_text(record),
        metagraph_facts=metagraph_rows.fact_rows(record),
        metagraph_figures=rewritten,
        groups=groups,
        groups_open=len(groups) <= _OPEN_GROUPS,
        locks=data.lock_rows(record),
        uncovered=[u for u in space.get("uncovered") or () if isinstance(u, dict)],
        notes=[str(note) for note in space.get("notes") or ()],
        over_merged=space.get("over_merged") or 0,
        digest=space.get("digest"),
        proof=record.get("proof") or {},
        proof_text=data.proof_text(record),
        phases=data.phase_rows(record),
        phases_total=duration(sum(row.seconds for row in data.phase_rows(record))),
        command=record.get("command"),
        environment=record.get("environment") or {},
        config=_as_json(record.get("config")),
        version=record.get("metaprune"),
    )


def write_report(record: data.Record, path: str | Path) -> Path:
    """Write the page to `path`, whole or not at all, and return it. Missing folders are made.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    text = render_report(record)
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _drawn(key: str, caption: str, figure: Any, note: str = "") -> dict[str, Any]:
    height = figure.layout["height"]
    return {"key": key, "caption": caption, "note": note, "height": height, "json": _figure_json(figure)}


def _figure_json(figure: Any) -> Markup:
    """The figure as JSON that is safe inside a script element: no `<`, so nothing in it can end the element."""
    return Markup(figure.to_json().replace("<", "\\u003c"))


def _facts(record: data.Record) -> list[tuple[str, str]]:
    """The line under the headline: method, budget, seed, date."""
    budget = ", ".join(f"{cost_noun(k)} ≤ {v}" for k, v in (record.get("budget") or {}).items())
    created = str(record.get("created") or "").replace("T", " ")[:16]
    form = (record.get("proof") or {}).get("form")
    found = [
        ("method", record.get("method")),
        ("budget", budget),
        ("form", form),
        ("seed", record.get("seed")),
        ("made", created),
    ]
    return [(name, str(value)) for name, value in found if value not in (None, "")]


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2, default=str, ensure_ascii=False) if value else ""
