"""Sensitivity curves as a figure: how far the outputs move when a group alone gets narrower."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from rich.table import Table

from metaprune.calibration.sensitivity import Curve
from metaprune.report.naming import pretty_model
from metaprune.report.page import PageTable, write_page
from metaprune.report.plots import BLUE, MARK_GREY, ORANGE, style
from metaprune.report.section import SectionFigure
from metaprune.report.text import plain_table
from metaprune.report.units import percentage, shortened

NOTE = (
    "Divergence of the outputs from the dense ones when one group alone keeps a share of its channels and its readers "
    "are solved anew, on unlabelled samples. Steep lines are groups that the network needs; the highest and the lowest "
    "at the smallest share are drawn in colour."
)


@dataclass(frozen=True, slots=True)
class CurveRow:
    """One curve: groups that shrink together, shares of the width by falling share, and the divergence at each."""

    name: str
    shares: tuple[float, ...]
    losses: tuple[float, ...]
    kept: float | None


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


def curves_page(
    curves: Sequence[Curve],
    shares: Sequence[float],
    facts: Mapping[str, Any],
    page: str | Path,
    warnings: Sequence[str] = (),
) -> tuple[Table, Path]:
    """Write the page of measured curves; return its table for the terminal, and where the page is.

    Args:
        shares: what was asked for; each row shows the nearest that its group could take.
        facts: what was measured on, by name; empty values are left out.
    """
    rows = [CurveRow(", ".join(c.groups), c.shares, c.losses, None) for c in curves]
    header = ["group", *(f"at {percentage(share, 0)}" for share in sorted(shares, reverse=True))]
    cells = [[row.name, *(_at(row, share) for share in sorted(shares, reverse=True))] for row in rows]
    figures = [SectionFigure("sensitivity", "What narrow groups cost", NOTE, curves_figure(rows))] if rows else []
    return plain_table(header, cells), write_page(
        page,
        f"Sensitivity of {pretty_model(facts.get('model'))}",
        facts=[(name, str(value)) for name, value in facts.items() if value != ""],
        warnings=warnings,
        figures=figures,
        tables=[PageTable("Divergence of the outputs at shares of the width", header, cells)],
    )


def _at(row: CurveRow, share: float) -> str:
    """The divergence at the share nearest to `share`; which one, where it is another by over two points."""
    nearest = min(range(len(row.shares)), key=lambda i: abs(row.shares[i] - share))
    text = f"{row.losses[nearest]:.2g}"
    return text if abs(row.shares[nearest] - share) <= 0.02 else f"{text} ({percentage(row.shares[nearest], 0)})"
