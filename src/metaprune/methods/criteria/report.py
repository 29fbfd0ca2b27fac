"""The report's section on measured widths: how far the outputs move when a group alone gets narrower."""

from __future__ import annotations

import html
from dataclasses import dataclass

import plotly.graph_objects as go

from metaprune.report.plots import BLUE, MARK_GREY, ORANGE, style
from metaprune.report.rows import Record, group_rows
from metaprune.report.section import (
    FactRow,
    Section,
    SectionFigure,
    list_or_empty,
    mapping_or_empty,
    method_part,
)
from metaprune.report.units import cost_noun, duration, finite, percentage, shortened

_NOTE = (
    "Divergence of the outputs from the dense ones when one group alone keeps a share of its channels and its readers "
    "are solved anew, on unlabelled samples. The widths are those of least total divergence within the budget. Steep "
    "lines are groups that the network needs; the highest and the lowest at the smallest share are drawn in colour."
)


@dataclass(frozen=True, slots=True)
class CurveRow:
    """One curve: groups that shrink together, shares of the width by falling share, and the divergence at each."""

    name: str
    shares: tuple[float, ...]
    losses: tuple[float, ...]
    kept: float | None


def curve_rows(record: Record) -> list[CurveRow]:
    """List the curves that were measured, in the order of the network; groups that may not shrink have none."""
    kept = {row.name: row.after / row.before for row in group_rows(record) if row.before}
    rows = []
    for curve in list_or_empty(method_part(record, "sensitivity").get("curves")):
        curve = mapping_or_empty(curve)
        points = zip(list_or_empty(curve.get("shares")), list_or_empty(curve.get("losses")), strict=False)
        numbers = [
            (x, y) for share, loss in points if (x := finite(share)) is not None and (y := finite(loss)) is not None
        ]
        names = [str(name) for name in list_or_empty(curve.get("groups"))]
        if numbers and names:
            shares, losses = zip(*numbers, strict=True)
            rows.append(CurveRow(", ".join(names), shares, losses, kept.get(names[0])))
    return rows


def curves_figure(rows: list[CurveRow]) -> go.Figure:
    """Draw every curve; the most and the least sensitive unit in colour."""
    ends = sorted(range(len(rows)), key=lambda i: rows[i].losses[-1])
    colours = {ends[0]: BLUE, ends[-1]: ORANGE}
    figure = go.Figure()
    for i, row in enumerate(rows):
        name = html.escape(shortened(row.name, 80))
        kept = "" if row.kept is None else f"<br>kept {percentage(row.kept, 0)}"
        figure.add_scatter(
            x=[100 * share for share in row.shares],
            y=[max(loss, 1e-6) for loss in row.losses],
            mode="lines+markers",
            name=name,
            showlegend=i in colours,
            line={"color": colours.get(i, MARK_GREY), "width": 2 if i in colours else 1},
            hovertemplate=f"<b>{name}</b><br>%{{x:.0f}}% of the width: %{{y:.2g}}{kept}<extra></extra>",
        )
    style(figure, height=380)
    figure.update_xaxes(title_text="share of the width", ticksuffix="%", autorange="reversed")
    figure.update_yaxes(title_text="divergence of the outputs", type="log")
    return figure


def price_rows(record: Record) -> list[FactRow]:
    """Say what each bound costs: how much less the outputs would move if it alone were 5% looser."""
    prices = mapping_or_empty(method_part(record, "sensitivity").get("prices"))
    loss, rows = finite(prices.get("loss")), []
    for metric, value in mapping_or_empty(prices.get("relaxed")).items():
        relaxed = finite(value)
        if loss and relaxed is not None:
            rows.append(
                FactRow(f"5% more {cost_noun(metric)}", f"-{percentage(1 - relaxed / loss, 0)}", "expected divergence")
            )
    return rows


def section(record: Record) -> Section | None:
    """Tell what widths cost; None of a record without measured curves. It is one section for all ranking methods."""
    rows = curve_rows(record)
    if not rows:
        return None
    facts = [FactRow("Groups measured", str(len(rows)), "each alone, at up to three shares of its width")]
    if (seconds := finite(method_part(record, "sensitivity").get("seconds"))) is not None:
        facts.append(FactRow("Measuring: wall time", duration(seconds)))
    facts += price_rows(record)
    figure = SectionFigure("sensitivity", "What narrow groups cost", _NOTE, curves_figure(rows))
    return Section("sensitivity", "Sensitivity", facts=facts, figures=[figure])
