"""The study as figures: accuracy against MACs of every rewrite and control, right after the cut and after fine-tuning.

python benchmarks/metagraph/plots.py --network resnet20 --out metagraph.html
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import plotly.graph_objects as go
from metagraph_tables import cut_rows, percent, tuned_curves, tuned_rows
from plotly.subplots import make_subplots

from metaprune.report.plots import style

Curves = dict[str, list[tuple[float, list[float]]]]  # label -> (MACs in percent, accuracies of the seeds)


def curves(network: str, epochs: float) -> tuple[Curves, Curves]:
    """Right after the cut, and after fine-tuning at the rate that most seeds have: it was chosen on another."""
    cut: Curves = {
        f"{arm} ({variant})": [(percent(share), [a for _, a in seeds]) for share, seeds in found.items()]
        for (name, arm, variant), found in cut_rows().items()
        if name == network
    }
    tuned: Curves = {
        f"{arm} ({variant})": [(percent(share), seeds) for share, seeds in found.items()]
        for (name, arm, variant), found in tuned_curves(epochs).items()
        if name == network
    }
    return cut, tuned


def figure(network: str, epochs: float = 2) -> go.Figure:
    made = make_subplots(1, 2, subplot_titles=("right after the cut", f"after {epochs:g} epochs of fine-tuning"))
    seen: set[str] = set()
    for column, found in enumerate(curves(network, epochs), start=1):
        for label, points in sorted(found.items()):
            ordered = sorted(points)
            means = [statistics.mean(v) for _, v in ordered]
            line = {"width": 4 if label.startswith("metanetwork (") else 1.5}
            made.add_scatter(
                x=[x for x, _ in ordered],
                y=means,
                name=label,
                legendgroup=label,
                showlegend=label not in seen,
                mode="lines+markers",
                line=line,
                row=1,
                col=column,
                error_y={
                    "symmetric": False,
                    "array": [max(v) - m for (_, v), m in zip(ordered, means, strict=True)],
                    "arrayminus": [m - min(v) for (_, v), m in zip(ordered, means, strict=True)],
                },
            )
            seen.add(label)
    style(made, height=560, showlegend=True)
    made.update_layout(title=f"{network}: test accuracy, mean and range over seeds")
    made.update_xaxes(title_text="MACs left", ticksuffix="%")
    made.update_yaxes(ticksuffix="%")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    networks = sorted({key[0] for key in (*cut_rows(), *tuned_rows())})
    parser.add_argument("--network", default="resnet20", choices=networks)
    parser.add_argument("--epochs", type=float, default=2, help="of fine-tuning")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    figure(options.network, options.epochs).write_html(options.out, include_plotlyjs=True)
    print(options.out)


if __name__ == "__main__":
    main()
