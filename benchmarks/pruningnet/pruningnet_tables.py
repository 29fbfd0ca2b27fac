"""Tables of the PruningNet study and of its speed, from the committed results; what was not run is left out."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from metaprune.latency.build import spearman

HERE = Path(__file__).parent


MOBILENET, RESNET, SPEED = (HERE / f"{name}.json" for name in ("mobilenet_fashion", "resnet_cifar10", "speed"))
NO_RESULTS = "No results yet."
ELSE = {s: f"{s} (shared, sandwich, distil)" for s in ("random search", "greedy slimming")}  # their back-end


def budgets_table(study: Path) -> str:
    """Test accuracy by contender and budget: mean (lowest to highest seed)."""
    if not study.exists():
        return NO_RESULTS
    report = json.loads(study.read_text())
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, row in report["rows"].items():
        kind, *rest = key.split("/")
        if kind == "budget":
            label, budget, _ = rest
            found[ELSE.get(label, label)][budget].append(100 * row["accuracy"])
    budgets = sorted({b for by in found.values() for b in by}, key=lambda b: -float(b[:-1]))
    lines = [f"| structure | {' | '.join(f'{b} of the MACs' for b in budgets)} |", "|---|" + "---|" * len(budgets)]
    tightest = [b for b in budgets if any(b in by for label, by in found.items() if label != "full")][-1]
    ranked = sorted(found.items(), key=lambda item: -statistics.mean(item[1].get(tightest, [1e3])))
    for label, by in ranked:
        lines.append(f"| {label} | {' | '.join(_spread(by.get(b, [])) for b in budgets)} |")
    config = report["config"]
    return "\n".join(lines) + (
        f"\n\n{config['network']}, {config['images']:,} images of {config['data'][8:]}, every structure trained "
        f"from scratch with the same {config['final']['epochs']:g} epochs, 10,000 test images; mean (lowest to "
        "highest seed; number of seeds)."
    )


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.mean(values):.2f}% ({min(values):.2f} to {max(values):.2f}; {len(values)})"


def rank_table(study: Path) -> str:
    """Spearman correlation between the score of a structure and its accuracy when trained from scratch."""
    if not study.exists():
        return NO_RESULTS
    rows = json.loads(study.read_text())["rows"]
    trained = {int(k.rsplit("/", 1)[1]): row for k, row in rows.items() if k.startswith("rank/trained/")}
    scores: dict[tuple[str, str], dict[int, dict[str, float]]] = defaultdict(dict)
    for key, row in rows.items():
        if key.startswith("rank/score/"):
            *_, backend, recalibrated, index = key.split("/")
            scores[backend, recalibrated][int(index)] = row
    order = sorted(trained)
    half = [i for i in order if i >= 10]  # these all cost 30% of the MACs
    lines = [
        f"| back-end | all {len(order)} structures: accuracy | likelihood "
        f"| the {len(half)} at 30% of the MACs: accuracy | likelihood | all, accuracy, without recalibration |",
        "|---|---|---|---|---|---|",
    ]

    def rho(values: Any, among: list[int]) -> str:
        known = [i for i in among if i in values]
        if len(known) < 5:
            return ""
        scores = np.array([values[i] for i in known])
        if np.ptp(scores) == 0:
            return "all scores equal"
        return f"{spearman(scores, np.array([trained[i]['accuracy'] for i in known])):.2f}"

    for backend in dict.fromkeys(b for b, _ in scores):
        hits = {i: r["score"] for i, r in scores[backend, "bn"].items()}
        likelihood = {i: -r["loss"] for i, r in scores[backend, "bn"].items()}
        without = {i: r["score"] for i, r in scores[backend, "no bn"].items()}
        cells = (rho(by, among) for among in (order, half) for by in (hits, likelihood))
        lines.append(f"| {backend} | {' | '.join(cells)} | {rho(without, order)} |")
    macs = {i: float(r["macs"]) for i, r in trained.items()}
    lines.append(f"| MACs alone (no search) | {rho(macs, order)} | | {rho(macs, half)} | | |")
    return "\n".join(lines)


def cost_table(study: Path) -> str:
    """What fitting, searching and retraining took, mean over seeds and budgets."""
    if not study.exists():
        return NO_RESULTS
    rows = json.loads(study.read_text())["rows"]
    lines = ["| step | CPU s | MACs |", "|---|---|---|"]
    parts: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for key, row in rows.items():
        kind, label, *more = key.split("/")
        label = ELSE.get(label, label)
        if kind == "fit":
            parts[f"fit: {label}"].append((row["cpu_s"], row["macs"]))
        if kind == "search" and more[0] == "25%":
            parts[f"search at 25% of the MACs: {label}"].append((row["cpu_s"], row["macs"]))
        if kind == "budget":
            parts["training one structure"].append((row["cpu_s"], row["train_macs"]))
    for name, values in parts.items():
        seconds, macs = (statistics.mean(v[i] for v in values) for i in (0, 1))
        lines.append(f"| {name} | {seconds:,.0f} | {macs:.2g} |")
    return "\n".join(lines)


def speed_table() -> str:
    if not SPEED.exists():
        return NO_RESULTS
    report = json.loads(SPEED.read_text())
    lines = [
        "| one CPU thread | plain step, ms | PruningNet step, ms (ratio) | the same, widths never seen "
        "| making the weights, ms | shared weights, ms (ratio) | candidates scored per s "
        "| four at once by vmap, time over one by one | sampled per s at 75, 25, 5% |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in report["networks"].items():
        ms = row["step_ms"]
        plain = ms["plain, seen"]

        def ratio(key: str, ms: dict = ms, plain: float = plain) -> str:
            return f"{ms[key]:.0f} ({ms[key] / plain:.2f})"

        rates = ", ".join(f"{v:,.0f}" for v in row["samples_per_s"].values())
        steps = f"{ratio('generated, seen')} | {ratio('generated, new')} | {ms['generated, making weights']:.0f}"
        batching = row["batching"]
        scored = f"{row['candidates_per_s']:.2f} | {batching['together_ms'] / batching['one_by_one_ms']:.1f}"
        lines.append(f"| {name} | {plain:.0f} | {steps} | {ratio('shared, seen')} | {scored} | {rates} |")
    ranks = report["mobilenet_v1_generator_parameters_by_rank"]
    text = ", ".join(f"{'whole' if r == 'None' else f'rank {r}'} {n:,}" for r, n in ranks.items())
    return "\n".join(lines) + f"\n\nParameters of MobileNetV1's generators by the rank of their second layer: {text}."
