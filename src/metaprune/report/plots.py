"""Rows -> plotly figures. Colours are Okabe and Ito's, which colour-blind readers tell apart."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from metaprune.cost.metrics import cost_metrics
from metaprune.report.latency_rows import latency_fit
from metaprune.report.metric import metric_of, value_of
from metaprune.report.rows import GroupRow, HistoryRow, Record, group_rows, history_rows, summary_rows
from metaprune.report.units import percentage, shortened

BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#D3D8DE", "#27313C"
MARK_GREY = "#8A95A1"  # for small marks, which GREY is too light for
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_GRID = "#E8EBEF"
MANY_GROUPS = 40
"""Above this, group names no longer fit beside their bars: they move to the hover text."""


def figures(record: Record) -> list[tuple[str, str, go.Figure]]:
    """(key, caption, figure) of everything this record can show, in reading order."""
    metric = metric_of(record)
    made = [
        ("cost", "What remains of the cost", cost_figure(record)),
        ("metric", metric.label, metric_figure(record)),
        ("widths", "Channel groups before and after", widths_figure(record)),
        ("loss", "Loss by epoch", curves_figure(record, "loss")),
        ("curves", f"{metric.label} by epoch", None if metric.name == "loss" else curves_figure(record, "metric")),
    ]
    return [(key, caption, figure) for key, caption, figure in made if figure is not None]


def cost_figure(record: Record) -> go.Figure | None:
    """Draw every cost that was measured, as a share of the original's; None without any."""
    wanted = {"file_bytes", *(metric.name for metric in cost_metrics() if metric.listed)}
    rows = [r for r in summary_rows(record) if r.key in wanted and r.values[0] > 0]
    if not rows:
        return None
    shares = [100 * r.values[1] / r.values[0] for r in rows]
    figure = go.Figure()
    figure.add_bar(
        y=[r.label for r in rows],
        x=[100.0] * len(rows),
        orientation="h",
        marker_color=GREY,
        name="before",
        customdata=[r.before for r in rows],
        hovertemplate="%{y} before: %{customdata}<extra></extra>",
    )
    figure.add_bar(
        y=[r.label for r in rows],
        x=shares,
        orientation="h",
        marker_color=BLUE,
        name="after",
        width=0.5,
        customdata=[r.after for r in rows],
        hovertemplate="%{y} after: %{customdata} (%{x:.1f}%)<extra></extra>",
    )
    top = max(100.0, *shares)
    for row, value in zip(rows, shares, strict=True):
        figure.add_annotation(
            x=max(value, 100.0), y=row.label, text=f"<b>{value:.1f}%</b>", xanchor="left", showarrow=False, xshift=6
        )
    style(figure, height=90 + 44 * len(rows), barmode="overlay")
    figure.update_xaxes(range=[0, top * 1.2], **_percent_ticks(top))
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def metric_figure(record: Record) -> go.Figure | None:
    """Draw the primary metric of the original, right after the cut, and after recovery; None without two of them."""
    names = {"dense": "original", "cut": "after the cut", "recovered": "after recovery"}
    quality, metric = record.get("quality") or {}, metric_of(record)
    values = {k: v for k in names if (v := value_of(quality.get(k), metric.name)) is not None}
    if len(values) < 2:
        return None
    colours = {"dense": GREY, "cut": ORANGE, "recovered": BLUE}
    figure = go.Figure()
    figure.add_bar(
        y=[names[k] for k in values],
        x=[metric.scale * v for v in values.values()],
        orientation="h",
        width=0.6,
        marker_color=[colours[k] for k in values],
        hovertemplate=f"%{{y}}: %{{x:.4~g}}{metric.suffix}<extra></extra>",
        showlegend=False,
    )
    for key, value in values.items():
        text = f"<b>{metric.text(value)}</b>"
        figure.add_annotation(
            x=metric.scale * value, y=names[key], text=text, xanchor="left", showarrow=False, xshift=6
        )
    style(figure, height=90 + 44 * len(values))
    if metric.percent and max(values.values()) <= 1:
        figure.update_xaxes(range=[0, 122], **_percent_ticks(100))
    else:
        low, high = (metric.scale * v for v in (min(0.0, *values.values()), max(0.0, *values.values())))
        figure.update_xaxes(range=[low, high + 0.22 * (high - low or 1.0)])
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def widths_figure(record: Record) -> go.Figure | None:
    """Draw channels of every group before and after; None without groups."""
    rows = group_rows(record)
    if not rows:
        return None
    return _many_widths(rows) if len(rows) > MANY_GROUPS else _few_widths(rows)


def _few_widths(rows: Sequence[GroupRow]) -> go.Figure:
    names = axis_labels(row.name for row in rows)
    figure = go.Figure()
    figure.add_bar(
        y=names, x=[r.before for r in rows], orientation="h", marker_color=GREY, name="before", hoverinfo="skip"
    )
    figure.add_bar(
        y=names,
        x=[r.after for r in rows],
        orientation="h",
        marker_color=BLUE,
        name="after",
        width=0.5,
        customdata=[_hover(r) for r in rows],
        hovertemplate="%{customdata}<extra></extra>",
    )
    for name, row in zip(names, rows, strict=True):
        text = f"{row.after} / {row.before}  ({row.kept_text})"
        figure.add_annotation(x=row.before, y=name, text=text, xanchor="left", showarrow=False, xshift=6, font_size=11)
    style(figure, height=100 + 26 * len(rows), barmode="overlay")
    figure.update_xaxes(title_text="channels", range=[0, 1.45 * max(max(r.before, r.after) for r in rows)])
    figure.update_yaxes(autorange="reversed", showgrid=False, tickfont_size=11, type="category")  # names may be numbers
    return figure


def _many_widths(rows: Sequence[GroupRow]) -> go.Figure:
    """Two panels over the depth of the network: channels, and the share kept (narrow groups stay readable there)."""
    places = list(range(1, len(rows) + 1))
    hover = [_hover(r) for r in rows]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.58, 0.42])
    step: dict[str, Any] = {"width": 1.0, "marker_line_width": 0}
    figure.add_bar(
        x=places, y=[r.before for r in rows], marker_color=GREY, name="before", hoverinfo="skip", **step, row=1, col=1
    )
    shown: dict[str, Any] = {"customdata": hover, "hovertemplate": "%{customdata}<extra></extra>", "marker_color": BLUE}
    figure.add_bar(x=places, y=[r.after for r in rows], name="after", **shown, **step, row=1, col=1)
    figure.add_bar(x=places, y=[100 * r.kept for r in rows], showlegend=False, **shown, **step, row=2, col=1)
    style(figure, height=500, barmode="overlay")
    figure.update_yaxes(title_text="channels", row=1, col=1)
    figure.update_yaxes(title_text="share kept", ticksuffix="%", range=[0, 105], row=2, col=1)
    figure.update_xaxes(showgrid=False, range=[0.5, len(rows) + 0.5])
    figure.update_xaxes(
        title_text="channel group, from input to output (names on hover, and in the table below)", row=2, col=1
    )
    return figure


def curves_figure(record: Record, what: str) -> go.Figure | None:
    """Plot `what`, "loss" or "metric", over the epochs of all phases; None where nothing was trained."""
    rows = history_rows(record)
    metric = metric_of(record)
    scale, suffix = (metric.scale, metric.suffix) if what == "metric" else (1.0, "")
    figure = go.Figure()
    phases = list(dict.fromkeys(row.phase for row in rows))
    shown: set[str] = set()
    for split, colour, dash in (("train", ORANGE, "dot"), ("val", BLUE, "solid")):
        for phase in phases:
            points = [(r, getattr(r, f"{split}_{what}")) for r in rows if r.phase == phase]
            points = [(r, y) for r, y in points if y is not None]
            if points:
                first = split not in shown
                shown.add(split)
                trace = _curve(points, scale, colour, dash)
                names = {"train": "training", "val": "validation"}
                figure.add_trace(trace.update(name=names[split], legendgroup=split, showlegend=first))
    if not figure.data:
        return None
    style(figure, height=320)
    figure.update_xaxes(title_text="epoch", range=[min(0.7, len(rows) * 0.01 + 0.6), len(rows) + 0.3], tickformat="d")
    if len(rows) <= 12:
        figure.update_xaxes(dtick=1)
    figure.update_yaxes(ticksuffix=suffix, rangemode="normal" if what == "metric" else "tozero")
    _phase_marks(figure, rows, phases)
    return figure


def _curve(points: Sequence[tuple[HistoryRow, float]], scale: float, colour: str, dash: str) -> go.Scatter:
    return go.Scatter(
        x=[r.step for r, _ in points],
        y=[scale * y for _, y in points],
        mode="lines+markers" if len(points) <= 30 else "lines",
        line={"color": colour, "dash": dash, "width": 2},
        marker={"size": 6},
        customdata=[f"{_phase_name(r.phase)}, epoch {r.epoch}" for r, _ in points],
        hovertemplate="%{customdata}: %{y:.4g}<extra></extra>",
    )


def _phase_marks(figure: go.Figure, rows: Sequence[HistoryRow], phases: Sequence[str]) -> None:
    """A vertical line where the network was cut, and the phases' names over the curves."""
    if len(phases) < 2:
        return
    for i, phase in enumerate(phases):
        start = next(r.step for r in rows if r.phase == phase)
        if i:
            figure.add_vline(x=start - 0.5, line={"color": INK, "width": 1, "dash": "dash"})
        figure.add_annotation(
            x=start - 0.5 if i else start,
            y=1,
            yref="paper",
            text=_phase_name(phase),
            xanchor="left",
            yanchor="top",
            showarrow=False,
            xshift=3,
            font_size=11,
        )


def _phase_name(phase: str) -> str:
    known = {"train": "training", "recover": "recovery"}
    return known.get(phase, html.escape(phase))


def axis_labels(names: Iterable[str], length: int = 34) -> list[str]:
    """Axis names, short and still unique: equal ones would be drawn as a single bar."""
    seen: dict[str, int] = {}
    labels = []
    for name in names:
        label = shortened(name, length)
        seen[label] = seen.get(label, 0) + 1
        # plotly reads axis text as HTML
        labels.append(html.escape(label if seen[label] == 1 else f"{label} #{seen[label]}"))
    return labels


def _hover(row: GroupRow) -> str:
    return f"<b>{html.escape(shortened(row.name, 80))}</b><br>{row.after} of {row.before} channels ({row.kept_text})"


def _percent_ticks(top: float) -> dict[str, Any]:
    """Axis options; plotly drops a tick suffix where it is given the places of the ticks."""
    places = list(range(0, int(top) + 1, 25 * max(1, round(top / 100))))
    return {"tickvals": places, "ticktext": [f"{tick}%" for tick in places]}


def style(figure: go.Figure, height: int, **layout: Any) -> None:
    """Give a figure the look that all share; titles, ranges and ticks come after it."""
    figure.update_layout(
        template="none",
        height=height,
        paper_bgcolor="#FFFFFF",
        plot_bgcolor="#FFFFFF",
        font={"family": _FONT, "size": 13, "color": INK},
        margin={"l": 8, "r": 8, "t": 36, "b": 8},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom"},
        hoverlabel={"bgcolor": "#FFFFFF", "font": {"color": INK}},
        bargap=0.25,
        dragmode=False,
        **layout,
    )
    axis = {
        "gridcolor": _GRID,
        "zeroline": False,
        "automargin": True,
        "linecolor": _GRID,
        "ticks": "",
        "title_font_size": 12,
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)


def latency_figure(record: Record) -> go.Figure | None:
    """Predicted against measured milliseconds of the table's structures; None without a latency table."""
    fit = latency_fit(record)
    if fit is None:
        return None
    predicted, measured = [p for p, _ in fit.pairs], [m for _, m in fit.pairs]
    low, high = min(*predicted, *measured), max(*predicted, *measured)
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    ends = [low - pad, high + pad]
    figure = go.Figure()
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": INK, "width": 1, "dash": "dash"}, hoverinfo="skip")
    figure.add_scatter(
        x=predicted,
        y=measured,
        mode="markers",
        marker={"color": BLUE, "size": 8},
        hovertemplate="predicted %{x:.3g} ms, measured %{y:.3g} ms<extra></extra>",
    )
    texts = []
    if fit.median_error is not None:
        texts.append(f"median error {percentage(fit.median_error, 1)}")
    if fit.rank_correlation is not None:
        texts.append(f"rank correlation {fit.rank_correlation:.3f}")
    title = {"text": ", ".join(texts), "x": 0, "xanchor": "left", "font_size": 13, "xref": "paper"}
    style(figure, height=360, showlegend=False, title=title)
    figure.update_xaxes(title_text="predicted by the table (ms)", range=ends)
    figure.update_yaxes(title_text="measured (ms)", range=ends)
    return figure
