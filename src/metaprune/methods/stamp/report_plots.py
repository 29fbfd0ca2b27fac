"""The figures of the report's section on STAMP. Names are user text: plotly reads HTML, so they are escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from metaprune.methods.stamp.report_rows import (
    EpisodeRow,
    MaskRow,
    TargetRow,
    episode_rows,
    mask_rows,
    similarities,
    target_rows,
    timeline_rows,
)
from metaprune.report.plots import BLUE, INK, MANY_GROUPS, MARK_GREY, ORANGE, axis_labels, style
from metaprune.report.rows import Record
from metaprune.report.section import SectionFigure
from metaprune.report.units import shortened

_SKY = "#56B4E9"
_PHASES = {"adapt": BLUE, "encode": _SKY, "cut": ORANGE, "recover": MARK_GREY}
_CELLS = 100  # a wider group is shown by so many of its channels
_NOTES = {
    "meta": (
        "Loss and kept cost, the expected share of the full network's, are those of an episode's last step. Mask "
        "variety is 1 less the Jaccard index with the mask of the episode before, in the first with the full network: "
        "where it stays near zero, every data set gets about the same mask."
    ),
    "masks": (
        "Probability of every channel, or filter pair of a layer, to be kept, highest first. The mark is at the share "
        "that was kept."
    ),
    "alike": "Jaccard index of what is kept: this target and those that the same artifact was adapted to before.",
    "targets": "This target and those that the same artifact was adapted to before, each on its own test split.",
    "time": "From the data set to the small network. Meta-training is not in it: it is paid once, for all data sets.",
}


def stamp_figures(record: Record) -> list[SectionFigure]:
    """Everything this record can show of STAMP, in reading order."""
    made = [
        ("stamp-meta", "Meta-training by episode", _NOTES["meta"], meta_figure(record)),
        ("stamp-masks", "Masks by layer", _NOTES["masks"], masks_figure(record)),
        ("stamp-time", "Time line", _NOTES["time"], time_figure(record)),
        ("stamp-alike", "Masks of all targets", _NOTES["alike"], similarity_figure(target_rows(record))),
        ("stamp-targets", "Accuracy against cost", _NOTES["targets"], targets_figure(target_rows(record))),
    ]
    return [SectionFigure(key, heading, note, figure) for key, heading, note, figure in made if figure is not None]


def meta_figure(record: Record) -> go.Figure | None:
    """Loss, kept cost and mask variety by episode, one panel each; None without episodes."""
    rows = episode_rows(record)
    panels = [
        (title, values, colour)
        for title, values, colour in (
            ("loss", [r.loss for r in rows], ORANGE),
            ("kept cost", [_percent(r.kept_cost) for r in rows], BLUE),
            ("mask variety", [_percent(r.variety) for r in rows], INK),
        )
        if any(value is not None for value in values)
    ]
    if not panels:
        return None
    figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    places, hover = [r.number for r in rows], [_episode_hover(r) for r in rows]
    for i, (title, values, colour) in enumerate(panels, start=1):
        unit = "" if title == "loss" else "%"
        figure.add_scatter(
            x=places,
            y=values,
            name=title,
            mode="lines+markers" if len(rows) <= 30 else "lines",
            line={"color": colour, "width": 1.5},
            marker={"size": 4},
            customdata=hover,
            row=i,
            col=1,
            hovertemplate=f"%{{customdata}}: {title} %{{y:.3g}}{unit}<extra></extra>",
        )
    style(figure, height=60 + 120 * len(panels), showlegend=False)
    for i, (title, _, _) in enumerate(panels, start=1):
        suffix = "" if title == "loss" else "%"
        figure.update_yaxes(title_text=title, ticksuffix=suffix, rangemode="tozero", nticks=5, row=i, col=1)
    figure.update_xaxes(tickformat=",d")
    figure.update_xaxes(title_text="episode", row=len(panels), col=1)
    return figure


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _episode_hover(row: EpisodeRow) -> str:
    parts = [f"episode {row.number:,}", html.escape(shortened(row.data, 40))]
    parts += [f"{row.ways} classes"] if row.ways is not None else []
    return ", ".join(part for part in parts if part)


def masks_figure(record: Record) -> go.Figure | None:
    """Draw a strip of sorted keep probabilities per group or layer, marked where the kept ones end; or None."""
    rows = mask_rows(record)
    if not rows:
        return None
    few = len(rows) <= MANY_GROUPS
    names = axis_labels((r.name for r in rows), 34 if few else 80)
    cells = min(_CELLS, max(len(r.probabilities) for r in rows))
    figure = go.Figure()
    figure.add_heatmap(
        z=[_strip(row, cells) for row in rows],
        y=names,
        x0=50 / cells,
        dx=100 / cells,
        zmin=0,
        zmax=1,
        colorscale=[[0, "#F5F7F9"], [1, BLUE]],
        ygap=2 if few else 0,
        colorbar={"title": {"text": "keep probability", "side": "right", "font_size": 12}, "thickness": 12},
        hovertemplate="%{y}: keep probability %{z:.3g}<extra></extra>",
    )
    groups = [(name, row.group) for name, row in zip(names, rows, strict=True) if row.group is not None]
    texts = [f"{group.after} / {group.before}  ({group.kept_text})" for _, group in groups]
    marker = {"symbol": "line-ns", "size": 14 if few else 4, "line": {"color": ORANGE, "width": 3}}
    figure.add_scatter(
        x=[100 * group.kept for _, group in groups],
        y=[name for name, _ in groups],
        mode="markers",
        marker=marker,
        name="share kept",
        showlegend=bool(groups),
        customdata=texts,
        hovertemplate="%{y}: %{customdata} kept<extra></extra>",
    )
    for (name, _), text in zip(groups, texts, strict=True):
        if few:
            figure.add_annotation(x=100, y=name, text=text, xanchor="left", showarrow=False, xshift=6, font_size=11)
    style(figure, height=max(240, 130 + 24 * len(rows)) if few else 520)
    ticks = list(range(0, 101, 25))
    figure.update_xaxes(
        title_text="share of the group's channels or the layer's pairs, most probable first",
        range=[0, 125 if few else 100.5],
        tickvals=ticks,
        ticktext=[f"{tick}%" for tick in ticks],
        showgrid=False,
    )
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, tickfont_size=11, showticklabels=few)
    if not few:
        figure.update_yaxes(title_text="group or layer, from input to output (names on hover)")
    return figure


def _strip(row: MaskRow, cells: int) -> list[float]:
    """The sorted probabilities at the middle of every cell."""
    count = len(row.probabilities)
    return [row.probabilities[(2 * i + 1) * count // (2 * cells)] for i in range(cells)]


def time_figure(record: Record) -> go.Figure | None:
    """Draw one bar of the phases' seconds, end to end; None where no time was taken."""
    rows = timeline_rows(record)
    if not rows:
        return None
    figure = go.Figure()
    for row in rows:
        figure.add_bar(
            x=[row.seconds],
            y=["time"],
            orientation="h",
            name=f"{row.phase} {row.text}",
            width=0.6,
            marker_color=_PHASES[row.phase],
            customdata=[f"{row.phase}: {row.text}, {100 * row.part:.0f}%"],
            hovertemplate="%{customdata}<extra></extra>",
        )
    style(figure, height=140, barmode="stack")
    figure.update_layout(legend_traceorder="normal")
    figure.update_xaxes(title_text="seconds", rangemode="tozero")
    figure.update_yaxes(showticklabels=False, showgrid=False)
    return figure


def similarity_figure(rows: Sequence[TargetRow]) -> go.Figure | None:
    """Draw a heat map of how alike the masks of targets are; None for fewer than two."""
    if len(rows) < 2:
        return None
    names = axis_labels((r.name for r in rows), 34)
    figure = go.Figure()
    figure.add_heatmap(
        z=similarities(rows),
        x=names,
        y=names,
        zmin=0,
        zmax=1,
        colorscale=[[0, "#F5F7F9"], [1, BLUE]],
        xgap=2,
        ygap=2,
        texttemplate="%{z:.2f}" if len(rows) <= 12 else None,
        colorbar={"thickness": 12},
        hovertemplate="%{y} and %{x}: %{z:.3f}<extra></extra>",
    )
    style(figure, height=180 + 34 * len(rows))
    figure.update_xaxes(type="category", showgrid=False, tickfont_size=11)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, tickfont_size=11)
    return figure


def targets_figure(rows: Sequence[TargetRow]) -> go.Figure | None:
    """Plot accuracy by kept parameters, one line per data set; None for fewer than two points."""
    points = [(r.data, r.share, r.accuracy) for r in rows if r.share is not None and r.accuracy is not None]
    if len(points) < 2:
        return None
    figure = go.Figure()
    for data in dict.fromkeys(p[0] for p in points):
        points_of_data = sorted((100 * share, 100 * accuracy) for name, share, accuracy in points if name == data)
        named = html.escape(shortened(data, 40))
        figure.add_scatter(
            x=[x for x, _ in points_of_data],
            y=[y for _, y in points_of_data],
            mode="lines+markers",
            name=named,
            hovertemplate=f"{named}: %{{y:.1f}}% at %{{x:.1f}}% of the parameters<extra></extra>",
        )
    style(figure, height=360, showlegend=True)
    figure.update_xaxes(title_text="parameters kept", ticksuffix="%", rangemode="tozero")
    figure.update_yaxes(title_text="accuracy", ticksuffix="%")
    return figure
