"""The report as HTML: no network, all user text escaped; what draws its figures in the page, or in a file beside it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metaprune.report import rows as data
from metaprune.report.advice import next_steps, speed_advice
from metaprune.report.latency_rows import latency_facts
from metaprune.report.layer_rows import layer_rows
from metaprune.report.neighbours import Neighbours, neighbours
from metaprune.report.page import SCRIPT, drawn, rendered, write_html
from metaprune.report.plots import figures, latency_figure
from metaprune.report.section import Section, SectionFigure
from metaprune.report.units import cost_noun, duration

_OPEN_GROUPS = 30  # a longer table of groups starts folded
_LATENCY_NOTE = (
    "Random structures that the latency table was not made from, run whole. On the diagonal, prediction and "
    "measurement are equal."
)


def render_report(
    record: data.Record,
    sections: Sequence[Section] = (),
    *,
    plotly_file: str = "",
    folder: str = "",
    beside: Neighbours | None = None,
) -> str:
    """Render the page's text.

    Args:
        record: a run's record.json; all of its parts may be missing.
        sections: what the method tells of the run, see `metaprune.runs.sections`.
        plotly_file: name of the script that draws the figures; in the page unless given.
        folder: of the saved network, which the next steps name.
        beside: runs to compare with.
    """
    drawings = [drawn(key, caption, figure) for key, caption, figure in figures(record)]
    section_parts = [_drawn_section(section) for section in (*sections, *_latency_section(record))]
    space = record.get("space") or {}
    groups, layers = data.group_rows(record), layer_rows(record)
    return rendered(
        "report.html.jinja",
        has_figures=bool(drawings) or any(section["rows"] for section in section_parts),
        plotly_file=plotly_file,
        next_steps=next_steps(record, folder),
        speed=speed_advice(record),
        title=data.title(record),
        headline=data.headline(record).replace(" -> ", " → "),
        facts=_facts(record),
        warnings=[str(text) for text in record.get("warnings") or ()],
        summary=data.summary_rows(record),
        budgets=data.budget_rows(record),
        masks_text=data.masks_text(record),
        figures=drawings,
        sections=section_parts,
        beside=beside,
        layers=layers,
        layers_timed=any(row.ms for row in layers),
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


def write_report(
    record: data.Record, path: str | Path, sections: Sequence[Section] = (), *, self_contained: bool = False
) -> Path:
    """Write the page to `path`, whole or not at all, and return it. Missing folders are made.

    What draws the figures (4.5 MB) goes beside it, once in a folder, or into it where it is to be `self_contained`.
    `record` and `sections` are those of `render_report`.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    folder = str(path.parent) if (path.parent / "network.json").is_file() else ""
    beside = neighbours(record, path.parent) if folder else None
    script = "" if self_contained else SCRIPT
    return write_html(path, render_report(record, sections, plotly_file=script, folder=folder, beside=beside))


def _drawn_section(section: Section) -> dict[str, Any]:
    """What the template shows of a section: `rows` are lists of drawings that lie side by side."""
    rows: list[list[dict[str, Any]]] = []
    for half, group in itertools.groupby(section.figures, key=lambda f: f.half):
        drawings = [drawn(f.key, f.heading, f.figure, f.note) for f in group]
        rows += [drawings] if half else [[drawing] for drawing in drawings]
    return {"id": section.id, "title": section.title, "text": section.text, "facts": section.facts, "rows": rows}


def _latency_section(record: data.Record) -> list[Section]:
    """What a latency table says of itself, if there is one."""
    facts, figure = latency_facts(record), latency_figure(record)
    heading = "Latency table: predicted against measured"
    figures = [] if figure is None else [SectionFigure("latency-table", heading, _LATENCY_NOTE, figure)]
    return [Section("latency", "Latency table", "", facts, figures)] if facts or figures else []


def _facts(record: data.Record) -> list[tuple[str, str]]:
    """The line under the headline: method, budget, seed, date."""
    budget = ", ".join(f"{cost_noun(k)} ≤ {v}" for k, v in (record.get("budget") or {}).items())
    created = str(record.get("created") or "").replace("T", " ")[:16]
    form = (record.get("proof") or {}).get("form")
    facts = [
        ("method", record.get("method")),
        ("budget", budget),
        ("form", form),
        ("samples", data.splits_text(record)),
        ("seed", record.get("seed")),
        ("made", created),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2, default=str, ensure_ascii=False) if value else ""
