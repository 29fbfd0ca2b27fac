"""The study as figures: how alike masks are, accuracy against cost, and the phases beside train-then-prune's.

python benchmarks/stamp/plots.py --out stamp.html
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from stamp_tables import ADAPT, CORE, DENSE, RANGE, RIVALS, SMALL, break_even_text, masks_alike, rivals, study_rows

from metaprune.report.plots import BLUE, MARK_GREY, ORANGE, style

ONE_COST = ", fitted for 25%"


def masks_figure(budget: str = "25%") -> go.Figure:
    names, values = masks_alike(budget)
    figure = go.Figure()
    figure.add_heatmap(
        z=values, x=names, y=names, zmin=0, zmax=1, colorscale=[[0, "#F5F7F9"], [1, BLUE]], texttemplate="%{z:.2f}"
    )
    style(figure, height=200 + 40 * len(names))
    figure.update_layout(title=f"Jaccard index of STAMP's masks at {budget} of the parameters")
    figure.update_yaxes(autorange="reversed")
    return figure


def accuracy_figure(target: str) -> go.Figure:
    """Mean test accuracy by parameters: curves with the artifact for a range of costs, points with the one for 25%."""
    rows = {k: v for k, v in study_rows(study=RANGE).items() if k[0] == target}
    for (name, budget, label), found in study_rows().items():
        if name == target and (label == RIVALS[0] or not any(k[2] == label for k in rows)):
            rows[name, budget, f"STAMP{ONE_COST}" if label == RIVALS[0] else label] = found
    figure = go.Figure()
    for label in dict.fromkeys(k[2] for k in rows):
        own = [v for k, v in rows.items() if k[2] == label]
        points = sorted(
            (statistics.mean(r["params"] for r in v), 100 * statistics.mean(r["accuracy"] for r in v)) for v in own
        )
        figure.add_scatter(
            x=[x for x, _ in points],
            y=[y for _, y in points],
            name=label,
            mode="lines+markers",
            line={"width": 4 if label == "STAMP" else 1.5},
            visible=True if label.removesuffix(ONE_COST) in CORE else "legendonly",
        )
    style(figure, height=520, showlegend=True)
    figure.update_layout(title=f"{target}: accuracy against parameters")
    figure.update_xaxes(title_text="parameters", type="log")
    figure.update_yaxes(title_text="test accuracy", ticksuffix="%")
    return figure


def phases_figure(budget: str = "25%") -> go.Figure | None:
    """CPU seconds and MACs by phase of STAMP and of train, Taylor, train, for every target that has both."""
    found = rivals(budget)
    if not found:
        return None
    figure = make_subplots(cols=2, shared_yaxes=True, subplot_titles=["CPU seconds", "MACs"], horizontal_spacing=0.04)
    bars = [(target, label, part) for target, pair in found.items() for label, part in zip(RIVALS, pair, strict=True)]
    places = [[target for target, _, _ in bars], [label for _, label, _ in bars]]
    for phase, colour in ((ADAPT, ORANGE), (DENSE, MARK_GREY), (SMALL, BLUE)):
        for column, values in enumerate(([b.cpu_s for *_, b in bars], [b.macs for *_, b in bars]), start=1):
            figure.add_bar(
                y=places,
                x=[v.get(phase, 0.0) for v in values],
                orientation="h",
                name=phase,
                legendgroup=phase,
                showlegend=column == 1,
                marker_color=colour,
                row=1,
                col=column,
            )
    style(figure, height=220 + 56 * len(found), barmode="stack")
    own, other = found["all targets"]
    title = f"From the pretrained to the small network at {budget} of the parameters, mean over seeds<br>"
    if any(part.guessed for _, _, part in bars):
        title += "<sup>CPU seconds of dense and small training were measured as one figure: split by MACs</sup><br>"
    figure.update_layout(title=f"{title}<sup>{break_even_text(own, other)}</sup>", margin_t=150)
    figure.update_layout(legend={"y": -0.12, "yanchor": "top"})
    figure.update_yaxes(autorange="reversed")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    targets = dict.fromkeys(k[0] for k in study_rows())
    figures = [f for f in (masks_figure(), *(accuracy_figure(t) for t in targets), phases_figure()) if f is not None]
    parts = [f.to_html(full_html=False, include_plotlyjs=i == 0) for i, f in enumerate(figures)]
    options.out.write_text("<!doctype html><meta charset=utf-8><title>STAMP</title>" + "".join(parts))


if __name__ == "__main__":
    main()
