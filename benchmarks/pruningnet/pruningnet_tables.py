"""Tables of the PruningNet study and of its speed, from the committed results; what was not run is left out."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from metaprune.latency.build import spearman

HERE = Path(__file__).parent


MOBILENET, RESNET, GLYPHS, BRIEF_GLYPHS, SPEED = (
    HERE / f"{name}.json" for name in ("mobilenet_fashion", "resnet_cifar10", "glyphs", "glyphs_5_epochs", "speed")
)
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
        f"from scratch with the same {config['final']['epochs']:g} epochs, {config.get('test_images', 10_000):,} test "
        "images; mean (lowest to highest seed; number of seeds)."
    )


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.mean(values):.2f}% ({min(values):.2f} to {max(values):.2f}; {len(values)})"


def rank_table(study: Path) -> str:
    """Spearman correlation between the score of a structure and its accuracy when trained from scratch."""
    if not study.exists():
        return NO_RESULTS
    report = json.loads(study.read_text())
    rows, share = report["rows"], 100 * report["config"].get("rank_share", 0.3)
    seeds: dict[int, dict[int, float]] = defaultdict(dict)  # structure -> seed of its training -> accuracy
    macs: dict[int, float] = {}
    scores: dict[tuple[str, str], dict[int, dict[int, dict[str, float]]]] = defaultdict(lambda: defaultdict(dict))
    for key, row in rows.items():
        if key.startswith("rank/trained/"):
            i, seed = map(int, key.split("/")[2:])
            seeds[i][seed], macs[i] = row["accuracy"], float(row["macs"])
        if key.startswith("rank/score/"):
            *_, backend, recalibrated, i, seed = key.split("/")
            scores[backend, recalibrated][int(seed)][int(i)] = row
    trained = {i: statistics.mean(by.values()) for i, by in seeds.items()}
    order = sorted(trained)
    half = [i for i in order if i >= 10]  # these all cost the same
    times = min(len(seeds[i]) for i in half)
    lines = [
        f"| back-end | all {len(order)} structures: accuracy | likelihood "
        f"| the {len(half)} at {share:g}% of the MACs: accuracy | likelihood | all, accuracy, without recalibration |",
        "|---|---|---|---|---|---|",
    ]

    rho = partial(_correlation, truth=trained)
    for backend in dict.fromkeys(b for b, _ in scores):
        fits, without = list(scores[backend, "bn"].values()), list(scores[backend, "no bn"].values())
        hits = [{i: r["score"] for i, r in fit.items()} for fit in fits]
        likelihood = [{i: -r["loss"] for i, r in fit.items()} for fit in fits]
        cells = (rho(by, among) for among in (order, half) for by in (hits, likelihood))
        unset = rho([{i: r["score"] for i, r in fit.items()} for fit in without], order)
        lines.append(f"| {backend} | {' | '.join(cells)} | {unset} |")
    lines.append(f"| MACs alone (no search) | {rho([macs], order)} | | {rho([macs], half)} | | |")
    if times > 1:
        again = [
            _correlation([{i: seeds[i][s] for i in half}], half, {i: _without(seeds[i], s) for i in half})
            for s in sorted(seeds[half[0]])
        ]
        lines.append(f"| training itself, one seed against the mean of the others | | | {', '.join(again)} | | |")
    said = f", those at {share:g}% of the MACs with {times} seeds each" if times > 1 else ""
    return "\n".join(lines) + (
        f"\n\nEvery structure trained from scratch{said}; the test accuracies of the {len(half)} lie within "
        f"{100 * _range(trained, half):.1f} points. Several PruningNets: mean (lowest to highest; number)."
    )


def _correlation(fits: list[dict[int, float]], among: list[int], truth: dict[int, float]) -> str:
    """Spearman correlation with the truth, mean over PruningNets, lowest to highest."""
    pairs = [[(by[i], truth[i]) for i in among if i in by] for by in fits]
    found = [spearman(*np.array(p).T) if np.ptp([s for s, _ in p]) else None for p in pairs if len(p) >= 5]
    known = [f for f in found if f is not None]
    if not known:
        return "all scores equal" if found else ""
    spread = f" ({min(known):.2f} to {max(known):.2f}; {len(known)})" if len(known) > 1 else ""
    return f"{statistics.mean(known):.2f}{spread}"


def tuned_rank_table(study: Path) -> str:
    """Spearman correlation of scores with what a structure gives when the *trained* network is cut to it."""
    report = json.loads(study.read_text())
    tuned: dict[str, dict[int, float]] = defaultdict(dict)  # right after the cut, fine-tuned
    scores: dict[str, dict[int, dict[str, float]]] = defaultdict(dict)
    for key, row in report["rows"].items():
        if key.startswith("rank/tuned/"):
            i, seed = map(int, key.split("/")[2:])
            if seed == 0:
                tuned["cut"][i], tuned["accuracy"][i] = row["cut"], row["accuracy"]
        if key.startswith("rank/score/") and key.split("/")[3] == "bn" and key.endswith("/0"):
            _, _, backend, _, i, _ = key.split("/")
            scores[backend][int(i)] = row
    if not tuned:
        return NO_RESULTS
    order = sorted(tuned["cut"])
    half, share = [i for i in order if i >= 10], 100 * report["config"]["rank_share"]
    lines = [
        f"| score by | right after the cut: all {len(order)} | the {len(half)} at {share:g}% of the MACs "
        f"| after one pass of fine-tuning: all {len(order)} | the {len(half)} at {share:g}% |",
        "|---|---|---|---|---|",
    ]
    for backend, by in scores.items():
        for name, values in (
            ("accuracy", {i: r["score"] for i, r in by.items()}),
            ("likelihood", {i: -r["loss"] for i, r in by.items()}),
        ):
            cells = [_correlation([values], among, tuned[t]) for t in ("cut", "accuracy") for among in (order, half)]
            lines.append(f"| {backend}, {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + (
        "\n\nThe trained network is cut to each structure, channels in the closed form's order, and solved by least "
        f"squares. Fine-tuned, the {len(half)} lie within {100 * _range(tuned['accuracy'], half):.1f} points."
    )


def _range(trained: dict[int, float], among: list[int]) -> float:
    return max(trained[i] for i in among) - min(trained[i] for i in among)


def _without(by: dict[int, float], seed: int) -> float:
    return statistics.mean(v for s, v in by.items() if s != seed)


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


def screening_table() -> str:
    """Rank correlation and time of scores on fewer images, and the same search with and without screening."""
    report = json.loads((HERE / "screening.json").read_text())
    lines = [
        "| images for statistics, for the score | rank correlation with all, at 50% and 25% of the MACs "
        f"| of the best {report['best']} in the better half | time of a score |",
        "|---|---|---|---|",
    ]
    by_size: dict[tuple[int, int], list[dict]] = {}
    for row in report["rank"]:
        by_size.setdefault((row["calibration"], row["validation"]), []).append(row)
    for (calibration, validation), rows in by_size.items():
        rho, best, times = (
            ", ".join(text)
            for text in zip(
                *((f"{r['spearman']:.3f}", str(r["best_in_upper_half"]), f"{r['time']:.2f}") for r in rows), strict=True
            )
        )
        lines.append(f"| {calibration:,}, {validation:,} | {rho} | {best} | {times} |")
    lines += [
        "",
        "| search at 25% of the MACs | structures a CPU second | scored on all | winner's score, by seed |",
        "|---|---|---|---|",
    ]
    for screening in (0, 512):
        rows = [r for r in report["search"] if r["screening"] == screening]
        rate = statistics.mean(r["candidates_per_cpu_s"] for r in rows)
        share = statistics.mean(r["scored_on_all"] / r["structures"] for r in rows)
        scores = ", ".join(f"{r['winner']:.4f}" for r in rows)
        name = f"{screening} images first" if screening else "all images at once"
        lines.append(f"| {name} | {rate:.2f} | {100 * share:.0f}% | {scores} |")
    return "\n".join(lines) + f"\n\n{report['structures']} random structures at each budget; 7,048 images are all."
