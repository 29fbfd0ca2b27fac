"""The figures of the report's section on the search. Names are user text: plotly reads HTML, so they are escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence

import plotly.graph_objects as go

from metaprune.methods.pruningnet.report_rows import (
    KeepRow,
    Scored,
    cost_metric,
    counts_generations,
    front_rows,
    generation_rows,
    keep_rows,
    score_name,
    scored,
    winner,
)
from metaprune.report.plots import BLUE, INK, MANY_GROUPS, MARK_GREY, ORANGE, axis_labels, style
from metaprune.report.rows import Record
from metaprune.report.section import SectionFigure
from metaprune.report.units import cost_axis, cost_noun, cost_text, finite, is_count, percentage, shortened

_NOTES = {
    "generations": "Scores on sub-validation of the structures that were looked at, generation by generation.",
    "batches": "Scores on sub-validation of the structures that were looked at, batch by batch in their order.",
    "front": (
        "Every structure that was scored. The line is the Pareto front: nothing that costs as little scores as high. "
        "The star is the structure that the network was cut to."
    ),
    "kept": (
        "Share of its channels that the winner keeps in each group, next to uniform width within the same budget "
        "(one share for all groups, as far as whole channels allow)."
    ),
}


def search_figures(record: Record) -> list[SectionFigure]:
    """Everything this record can show of its search, in reading order."""
    batches = not counts_generations(record)
    by = "the number of structures looked at" if batches else "generation"
    note = _NOTES["batches" if batches else "generations"]
    metric = cost_metric(record) or ""
    made = [
        ("search-scores", f"Best and median score by {by}", note, scores_figure(record), True),
        ("search-front", f"Score against {cost_noun(metric)}", _NOTES["front"], front_figure(record), True),
        ("search-kept", "Share kept by group: winner and uniform width", _NOTES["kept"], kept_figure(record), False),
    ]
    return [
        SectionFigure(key, heading, note, figure, half)
        for key, heading, note, figure, half in made
        if figure is not None
    ]


def scores_figure(record: Record) -> go.Figure | None:
    """Best and median score of every generation; None without scores."""
    rows = generation_rows(record)
    if not rows:
        return None
    counted = counts_generations(record)
    places = [r.number if counted else r.done for r in rows]
    figure = go.Figure()
    for name, values, colour, dash in (
        ("best", [r.best for r in rows], BLUE, "solid"),
        ("median", [r.median for r in rows], ORANGE, "dot"),
    ):
        figure.add_scatter(
            x=places,
            y=[100 * v for v in values],
            name=name,
            mode="lines+markers" if len(rows) <= 30 else "lines",
            line={"color": colour, "dash": dash, "width": 2},
            marker={"size": 6},
            customdata=[f"{name} of structures up to {r.done:,}" for r in rows],
            hovertemplate="%{customdata}: %{y:.2f}%<extra></extra>",
        )
    style(figure, height=330)
    figure.update_xaxes(title_text="generation" if counted else "structures looked at", tickformat=",d")
    if counted and len(rows) <= 12:
        figure.update_xaxes(dtick=1)
    figure.update_yaxes(title_text=score_name(record), ticksuffix="%")
    return figure


def front_figure(record: Record) -> go.Figure | None:
    """Score of all candidates over their cost, with the front, the budget and the winner; None without costs."""
    metric = cost_metric(record)
    rows = [row for row in scored(record) if row.cost is not None]
    if metric is None or not rows:
        return None
    figure = go.Figure()
    figure.add_trace(_points(rows, metric, "structures").update(mode="markers", marker={"size": 5, "color": MARK_GREY}))
    front = _points(front_rows(record), metric, "Pareto front")
    look = {"mode": "lines+markers", "line": {"color": BLUE, "width": 2, "shape": "hv"}, "marker": {"size": 7}}
    figure.add_trace(front.update(look))
    best = winner(record)
    if best is not None and best.cost is not None:
        star = {"size": 15, "color": ORANGE, "symbol": "star", "line": {"color": INK, "width": 1}}
        figure.add_trace(_points([best], metric, "winner").update(mode="markers", marker=star))
    style(figure, height=360)
    bound = finite((record.get("bounds") or {}).get(metric))
    if bound is not None:
        _bound_line(figure, bound, f"budget {cost_text(metric, bound)}")
    figure.update_xaxes(title_text=html.escape(cost_axis(metric)), nticks=6)
    if is_count(metric):
        figure.update_xaxes(tickformat=".4~s")
    figure.update_yaxes(title_text=score_name(record), ticksuffix="%")
    return figure


def _points(rows: Sequence[Scored], metric: str, name: str) -> go.Scatter:
    return go.Scatter(
        x=[row.cost for row in rows],
        y=[100 * row.score for row in rows],
        name=name,
        customdata=[
            f"structure {row.index + 1:,}: {percentage(row.score)}, {cost_text(metric, row.cost)}" for row in rows
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _bound_line(figure: go.Figure, bound: float, text: str) -> None:
    """A vertical line with its name at the foot, left of it: the best structures lie at the top."""
    figure.add_vline(x=bound, line={"color": INK, "width": 1, "dash": "dash"})
    figure.add_annotation(
        x=bound,
        y=0,
        yref="paper",
        text=text,
        xanchor="right",
        yanchor="bottom",
        showarrow=False,
        xshift=-4,
        font_size=11,
        bgcolor="rgba(255,255,255,0.8)",
    )


def kept_figure(record: Record) -> go.Figure | None:
    """Draw the winner's kept share of every group beside uniform width; None without a winner."""
    rows = keep_rows(record)
    if not rows:
        return None
    places = list(range(1, len(rows) + 1))
    hover = [_kept_hover(row) for row in rows]
    shown = {"customdata": hover, "hovertemplate": "%{customdata}<extra></extra>"}
    figure = go.Figure()
    figure.add_bar(x=places, y=[100 * r.winner for r in rows], name="winner", marker_color=BLUE, width=0.7, **shown)
    uniform = [r.uniform for r in rows]
    if None not in uniform:
        figure.add_scatter(
            x=places,
            y=[100 * u for u in uniform if u is not None],
            name="uniform width",
            mode="markers",
            **shown,
            marker={"color": ORANGE, "size": 9, "symbol": "diamond", "line": {"color": "#FFFFFF", "width": 1}},
        )
    few = len(rows) <= MANY_GROUPS
    style(figure, height=400 if few else 360)
    figure.update_yaxes(title_text="share of channels kept", ticksuffix="%", range=[0, 105])
    figure.update_xaxes(showgrid=False, range=[0.5, len(rows) + 0.5])
    if few:
        names = axis_labels((r.name for r in rows), 22)
        figure.update_xaxes(tickvals=places, ticktext=names, tickangle=-45, tickfont_size=11)
    else:
        figure.update_xaxes(title_text="channel group, from input to output (names on hover)")
    return figure


def _kept_hover(row: KeepRow) -> str:
    name = html.escape(shortened(row.name, 80))
    text = f"winner {row.width} of {row.before} channels ({percentage(row.winner, 0)})"
    uniform = "" if row.uniform is None else f"<br>uniform width {percentage(row.uniform, 0)}"
    return f"<b>{name}</b><br>{text}{uniform}"
