"""The study as figures: accuracy against MACs of every rewrite and control, right after the cut and after fine-tuning.

python benchmarks/metagraph/plots.py --network resnet20 --out metagraph.html
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path

import plotly.graph_objects as go
from metagraph_tables import cut_rows, tuned_rows
from plotly.subplots import make_subplots

from metaprune.report.plots import style

Curves = dict[str, list[tuple[float, list[float]]]]  # label -> (MACs in percent, accuracies of the seeds)


def curves(network: str) -> tuple[Curves, Curves]:
    """Right after the cut, and after fine-tuning at the learning rate that did best at each share of the MACs."""
    cut: Curves = {
        f"{arm} ({variant})": [(float(share[:-1]), [a for _, a in seeds]) for share, seeds in found.items()]
        for (name, arm, variant), found in cut_rows().items()
        if name == network
    }
    best: dict[str, dict[float, list[float]]] = defaultdict(dict)
    for (name, share, _, arm, variant), found in tuned_rows().items():
        values, at = [a for a, _ in found], best[f"{arm} ({variant})"]
        if name == network and statistics.mean(values) > statistics.mean(at.get(float(share[:-1]), [0.0])):
            at[float(share[:-1])] = values
    return cut, {label: list(found.items()) for label, found in best.items() if found}


def figure(network: str) -> go.Figure:
    made = make_subplots(1, 2, subplot_titles=("right after the cut", "after fine-tuning"))
    for column, found in enumerate(curves(network), start=1):
        for label, points in sorted(found.items()):
            ordered = sorted(points)
            means = [statistics.mean(v) for _, v in ordered]
            line = {"width": 4 if label.startswith("metanetwork (") else 1.5}
            made.add_scatter(
                x=[x for x, _ in ordered], y=means, name=label, legendgroup=label, showlegend=column == 1,
                mode="lines+markers", line=line, row=1, col=column,
                error_y={
                    "symmetric": False, "array": [max(v) - m for (_, v), m in zip(ordered, means, strict=True)],
                    "arrayminus": [m - min(v) for (_, v), m in zip(ordered, means, strict=True)],
                },
            )  # fmt: skip
    style(made, height=560, showlegend=True)
    made.update_layout(title=f"{network}: test accuracy, mean and range over seeds")
    made.update_xaxes(title_text="MACs left", ticksuffix="%")
    made.update_yaxes(ticksuffix="%")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    figure(options.network).write_html(options.out, include_plotlyjs=True)
    print(options.out)


if __name__ == "__main__":
    main()
