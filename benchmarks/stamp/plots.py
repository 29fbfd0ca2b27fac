"""The study as figures: how alike the masks of targets are, and accuracy against cost with all contenders.

python benchmarks/stamp/plots.py --out stamp.html
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import plotly.graph_objects as go
from stamp_tables import CORE, masks_alike, study_rows

from metaprune.report.plots import BLUE, style


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
    """Mean test accuracy by parameters; a contender at several budgets is a line."""
    rows = {k: v for k, v in study_rows().items() if k[0] == target}
    figure = go.Figure()
    for label in dict.fromkeys(k[2] for k in rows):
        own = [v for k, v in rows.items() if k[2] == label]
        points = sorted(
            (statistics.mean(r["params"] for r in v), 100 * statistics.mean(r["accuracy"] for r in v)) for v in own
        )
        figure.add_scatter(
            x=[x for x, _ in points], y=[y for _, y in points], name=label, mode="lines+markers",
            line={"width": 4 if label == "STAMP" else 1.5}, visible=True if label in CORE else "legendonly",
        )  # fmt: skip
    style(figure, height=520, showlegend=True)
    figure.update_layout(title=f"{target}: accuracy against parameters")
    figure.update_xaxes(title_text="parameters", type="log")
    figure.update_yaxes(title_text="test accuracy", ticksuffix="%")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    targets = dict.fromkeys(k[0] for k in study_rows())
    figures = [masks_figure(), *(accuracy_figure(t) for t in targets)]
    parts = [f.to_html(full_html=False, include_plotlyjs=i == 0) for i, f in enumerate(figures)]
    options.out.write_text("<!doctype html><meta charset=utf-8><title>STAMP</title>" + "".join(parts))


if __name__ == "__main__":
    main()
