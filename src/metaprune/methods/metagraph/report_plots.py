"""The figures of the report's section on the graph metanetwork, and the drawing of a graph."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from metaprune.methods.metagraph.report_rows import evaluation_rows, moved_rows, norm_rows, step_rows
from metaprune.report.metric import metric_of
from metaprune.report.plots import BLUE, GREY, INK, MANY_GROUPS, MARK_GREY, ORANGE, axis_labels, style
from metaprune.report.rows import Record
from metaprune.report.section import SectionFigure
from metaprune.report.units import shortened

_NOTES = {
    "meta": (
        "Held-out data models on the validation split, BatchNorm re-estimated: mean score after the cut to several "
        "budgets (and `tune_steps`, if any), and of the rewritten network without a cut. The first point rewrites "
        "nothing; the best state is kept."
    ),
    "steps": "On eight mini-batches of the validation split, BatchNorm re-estimated after each change but fine-tuning.",
    "norms": (
        "Channels of every group by the norm of their coupled weights, from zero to the largest before the rewrite. "
        "What moves to the left became easier to drop."
    ),
    "moved": "Norm of the change, relative to the norm of the tensor.",
}
_KINDS = {
    "conv": BLUE,
    "linear": BLUE,
    "grouped": "#56B4E9",
    "identity": MARK_GREY,
    "product": ORANGE,
    "head": "#009E73",
}


def metagraph_figures(record: Record) -> list[SectionFigure]:
    """Everything this record can show, in reading order."""
    made = [
        ("metagraph-meta", "Meta-training", _NOTES["meta"], meta_figure(record)),
        ("metagraph-steps", f"{metric_of(record).label} by step", _NOTES["steps"], steps_figure(record)),
        ("metagraph-norms", "Norms before and after the rewrite", _NOTES["norms"], norms_figure(record)),
        ("metagraph-moved", "What moved", _NOTES["moved"], moved_figure(record)),
    ]
    return [SectionFigure(key, heading, note, figure) for key, heading, note, figure in made if figure is not None]


def meta_figure(record: Record) -> go.Figure | None:
    rows, metric = evaluation_rows(record), metric_of(record)
    sign = 1.0 if metric.higher_is_better else -1.0  # areas are of scores, of which more is better
    if not any(r.area is not None for r in rows):
        return None
    figure = go.Figure()
    for name, values, colour in (
        ("after the cut", [r.area for r in rows], BLUE),
        ("uncut", [r.uncut for r in rows], MARK_GREY),
    ):
        figure.add_scatter(
            x=[r.step for r in rows],
            y=[None if v is None else sign * metric.scale * v for v in values],
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 2},
            hovertemplate=f"step %{{x}}, {name}: %{{y:.4~g}}{metric.suffix}<extra></extra>",
        )
    style(figure, height=320)
    figure.update_xaxes(title_text="step", tickformat=",d")
    figure.update_yaxes(title_text=metric.in_text, ticksuffix=metric.suffix)
    return figure


def steps_figure(record: Record) -> go.Figure | None:
    rows, metric = [r for r in step_rows(record) if r.metric is not None], metric_of(record)
    if not rows:
        return None
    names = axis_labels((r.name for r in rows), 40)
    figure = go.Figure()
    figure.add_bar(
        y=names,
        x=[metric.scale * (r.metric or 0) for r in rows],
        orientation="h",
        marker_color=BLUE,
        text=[metric.text(r.metric, 1) for r in rows],
        textposition="outside",
        cliponaxis=False,
        hovertemplate=f"%{{y}}: %{{x:.4~g}}{metric.suffix}<extra></extra>",
    )
    style(figure, height=90 + 36 * len(rows), showlegend=False)
    figure.update_xaxes(range=[0, 112] if metric.percent else None, ticksuffix=metric.suffix)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def norms_figure(record: Record) -> go.Figure | None:
    rows = norm_rows(record)
    if not rows:
        return None
    few = len(rows) <= MANY_GROUPS
    names = axis_labels((r.name for r in rows), 34 if few else 80)
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=("before", "after"))
    for col, side in ((1, "before"), (2, "after")):
        values = [getattr(r, side) for r in rows]
        shares = [[v / max(1, sum(row)) for v in row] for row in values]
        bins = len(values[0])
        figure.add_heatmap(
            z=shares,
            y=names,
            x0=50 / bins,
            dx=100 / bins,
            zmin=0,
            colorscale=[[0, "#F5F7F9"], [1, BLUE]],
            ygap=2 if few else 0,
            showscale=False,
            row=1,
            col=col,
            hovertemplate="%{y}: %{z:.0%} of the channels at %{x:.0f}%<extra></extra>",
        )
    style(figure, height=max(240, 110 + 22 * len(rows)) if few else 520)
    figure.update_xaxes(ticksuffix="%", range=[0, 100], title_text="norm", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, tickfont_size=11, showticklabels=few)
    if few:
        figure.update_yaxes(showticklabels=False, col=2)
    return figure


def moved_figure(record: Record) -> go.Figure | None:
    rows = moved_rows(record)
    if not rows:
        return None
    names = axis_labels((name for name, _ in rows), 60)
    figure = go.Figure()
    figure.add_bar(
        x=names,
        y=[100 * value for _, value in rows],
        marker_color=ORANGE,
        hovertemplate="%{x}: %{y:.2f}%<extra></extra>",
    )
    style(figure, height=300, showlegend=False)
    figure.update_xaxes(showticklabels=False, title_text="parameter, from input to output (names on hover)")
    figure.update_yaxes(title_text="change", ticksuffix="%")
    return figure


def graph_figure(sites: Sequence[Mapping], edges: Sequence[Mapping]) -> go.Figure:
    """Draw a circle per site (area by its nodes, depth from left to right), a line per pair of sites with edges.

    sites: name, kind, nodes, depth. edges: kind, count, into and out (positions in `sites`).
    """
    lanes: dict[int, int] = {}
    xs, ys = [], []
    for site in sites:
        lane = lanes.get(site["depth"], 0)
        lanes[site["depth"]] = lane + 1
        xs.append(site["depth"])
        ys.append((lane + 1) // 2 * (1 if lane % 2 else -1))
    figure = go.Figure()
    for kind, colour in _KINDS.items():
        line_x: list[float | None] = []
        line_y: list[float | None] = []
        for e in (e for e in edges if e["kind"] == kind):
            line_x += [xs[e["into"]], xs[e["out"]], None]
            line_y += [ys[e["into"]], ys[e["out"]], None]
        if line_x:
            dash = "dot" if kind == "identity" else "solid"
            line = {"color": colour, "dash": dash, "width": 1.5}
            figure.add_scatter(x=line_x, y=line_y, mode="lines", name=kind, line=line, hoverinfo="skip")
    largest = max((s["nodes"] for s in sites), default=1)
    sizes = [8 + 26 * (s["nodes"] / largest) ** 0.5 for s in sites]
    texts = [f"{html.escape(shortened(str(s['name']), 60))}<br>{s['kind']}, {s['nodes']:,} nodes" for s in sites]
    figure.add_scatter(
        x=xs,
        y=ys,
        mode="markers",
        showlegend=False,
        customdata=texts,
        hovertemplate="%{customdata}<extra></extra>",
        marker={"size": sizes, "color": GREY, "line": {"color": INK, "width": 1}},
    )
    style(figure, height=180 + 70 * max(lanes.values(), default=1))
    figure.update_layout(dragmode="pan")
    figure.update_xaxes(title_text="depth", showgrid=False)
    figure.update_yaxes(visible=False)
    return figure
