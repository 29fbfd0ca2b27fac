"""Tables of the graph metanetwork's study and speed, from the committed JSON."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from metaprune.methods.metagraph.pruner import area

HERE = Path(__file__).parent
ITSELF, CHOSEN_ON = 1000, 1001  # seeds: of the network that data models came from; that learning rates were chosen on


def _rows() -> dict[str, Any]:
    return json.loads((HERE / "cifar10.json").read_text())["rows"]


def _split(rows: dict[str, Any]) -> list[tuple[str, str, int, str, str, tuple[float, float], dict]]:
    """(variant, network, seed, arm, share, (epochs, learning rate), row) of every pruned network.

    The network that data models came from is one of its own, "... itself".
    """
    found = []
    for key, row in rows.items():
        if not key.startswith("meta-training/") and not key.endswith("/masks"):
            variant, network, seed, arm, share, epochs = key.split("/")
            rate = epochs.partition(" at ")[2] or 0.01
            network += " itself" if int(seed) == ITSELF else ""
            found.append((variant, network, int(seed), arm, share, (float(epochs.split()[0]), float(rate)), row))
    return found


def meta_table() -> str:
    """Meta-training: accuracy after the cut of the held-out data model."""
    lines = [
        "| objective | no rewrite | best state | at step | uncut, best state | meta-training |",
        "|---|---|---|---|---|---|",
    ]
    for key, row in _rows().items():
        if key.startswith("meta-training/"):
            evaluations = row["evaluations"]
            best = max(evaluations, key=lambda e: e["area"])
            areas = [f"{100 * e['area']:.1f}%" for e in (evaluations[0], best)]
            minutes = [f"{row['phases'][k] / 60:.0f} min" for k in ("meta", "data_models")]
            lines.append(
                f"| {key.split('/', 1)[1]} | {areas[0]} | {areas[1]} | {best['step']} "
                f"| {100 * best['uncut_accuracy']:.1f}% | {minutes[0]}, data models {minutes[1]} |"
            )
    return "\n".join(lines)


def cut_rows() -> dict[tuple[str, str, str], dict[str, list[tuple[float, float]]]]:
    """(network, arm, variant) -> share -> (MACs, accuracy in percent) of every seed, nothing trained after the cut."""
    cells: dict[tuple[str, str, str], dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for variant, network, _, arm, share, epochs, row in _split(_rows()):
        if not epochs[0]:
            cells[network, arm, variant][share].append((row["macs"], 100 * row["accuracy"]))
    return cells


def cut_table() -> str:
    """Test accuracy right after the cut, BatchNorm re-estimated, nothing trained: mean over seeds, and the area."""
    cells = cut_rows()
    if not cells:
        return "Not run yet."
    shares = sorted({s for c in cells.values() for s in c}, key=percent, reverse=True)
    lines = [
        f"| network | rewrite | objective | {' | '.join(shares)} of MACs | area (lowest to highest seed) | seeds |",
        "|---" * (5 + len(shares)) + "|",
    ]
    areas = {
        key: [area([{"macs": m, "score": a} for m, a in curve]) for curve in zip(*found.values(), strict=False)]
        for key, found in cells.items()
    }
    for key in sorted(cells, key=lambda k: (k[0], -statistics.mean(areas[k]))):
        network, arm, variant = key
        values = [f"{statistics.mean(a for _, a in cells[key][s]):.1f}" if cells[key][s] else "" for s in shares]
        lines.append(
            f"| {network} | {arm} | {variant} | {' | '.join(values)} | {_spread(areas[key])} | {len(areas[key])} |"
        )
    return "\n".join(lines)


def masks_table() -> str:
    """Test accuracy with single weights held at zero, BatchNorm re-estimated, nothing trained: mean over seeds."""
    cells: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, row in _rows().items():
        if key.endswith("/masks"):
            variant, network, _, arm, pattern, _ = key.split("/")
            at = f"{pattern.split()[0]}, {100 * row['nonzero']:.0f}% left"
            cells[network, arm, variant][at].append(100 * row["accuracy"])
    if not cells:
        return "Not run yet."
    columns = list(dict.fromkeys(c for found in cells.values() for c in found))
    lines = [f"| network | rewrite | objective | {' | '.join(columns)} | seeds |", "|---" * (4 + len(columns)) + "|"]
    for (network, arm, variant), found in sorted(cells.items()):
        values = [f"{statistics.mean(found[c]):.1f}" if found[c] else "" for c in columns]
        most = max(len(v) for v in found.values())
        lines.append(f"| {network} | {arm} | {variant} | {' | '.join(values)} | {most} |")
    return "\n".join(lines)


def tuned_rows() -> dict[tuple[str, str, tuple[float, float], str, str], list[tuple[float, float | None]]]:
    """(network, share, (epochs, learning rate), arm, variant) -> accuracy and that right after the cut, of every seed.

    The latter is None where BatchNorm was not re-estimated.
    """
    cells: dict[tuple, list[tuple[float, float | None]]] = defaultdict(list)
    for variant, network, seed, arm, share, epochs, row in _split(_rows()):
        if epochs[0] and seed != CHOSEN_ON:
            cut = None if row["cut"] is None else 100 * row["cut"]
            cells[network, share, epochs, arm, variant].append((100 * row["accuracy"], cut))
    return cells


def rates_table() -> str:
    """Test accuracy of one seed, which no other table uses, by the learning rate of the fine-tuning."""
    cells: dict[tuple, dict[float, float]] = defaultdict(dict)
    for variant, network, seed, arm, share, epochs, row in _split(_rows()):
        if epochs[0] and seed == CHOSEN_ON:
            cells[network, share, epochs[0], arm, variant][epochs[1]] = 100 * row["accuracy"]
    if not cells:
        return "Not run yet."
    rates = sorted({r for found in cells.values() for r in found})
    lines = [
        f"| network | MACs | epochs | rewrite | objective | {' | '.join(f'{r:g}' for r in rates)} |",
        "|---" * (5 + len(rates)) + "|",
    ]
    for key, found in sorted(cells.items(), key=lambda i: (*i[0][:3], -max(i[1].values()))):
        network, share, epochs, arm, variant = key
        values = [f"{found[r]:.2f}" if r in found else "" for r in rates]
        lines.append(f"| {network} | {share} | {epochs:g} | {arm} | {variant} | {' | '.join(values)} |")
    return "\n".join(lines)


def tuned_table() -> str:
    """Test accuracy after equal fine-tuning: mean, lowest and highest over seeds."""
    cells = tuned_rows()
    if not cells:
        return "Not run yet."
    lines = [
        "| network | MACs | epochs | learning rate | rewrite | objective | accuracy | right after the cut | seeds |",
        "|---" * 9 + "|",
    ]
    for (network, share, (epochs, rate), arm, variant), found in sorted(
        cells.items(), key=lambda i: (*i[0][:2], i[0][2][0], -statistics.mean(a for a, _ in i[1]))
    ):
        values = [a for a, _ in found]
        spread = f"{statistics.mean(values):.2f}% ({min(values):.2f} to {max(values):.2f})"
        cuts = [c for _, c in found if c is not None]
        cut = f"{statistics.mean(cuts):.1f}%" if cuts else ""
        how = f"{network} | {share} | {epochs:g} | {rate:g} | {arm} | {variant}"
        lines.append(f"| {how} | {spread} | {cut} | {len(found)} |")
    return "\n".join(lines)


def tuned_curves(epochs: float = 2) -> dict[tuple[str, str, str], dict[str, list[float]]]:
    """(network, arm, variant) -> share -> accuracy of every seed, at the rate that was chosen: most seeds have it."""
    found: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(dict)
    for (network, share, (trained, _), arm, variant), seeds in tuned_rows().items():
        at = found[network, arm, variant]
        if trained == epochs and len(seeds) > len(at.get(share, ())):
            at[share] = [a for a, _ in seeds]
    return {key: at for key, at in found.items() if at}


def area_table() -> str:
    """Test accuracy after two epochs and the area under it: what has three seeds at all of a network's budgets."""
    whole = {k: at for k, at in tuned_curves().items() if len(at) > 1 and min(len(a) for a in at.values()) > 2}
    most = {k[0]: max(len(at) for other, at in whole.items() if other[0] == k[0]) for k in whole}
    rows = []
    for (network, arm, variant), at in whole.items():
        if len(at) == most[network]:
            points = [
                [{"macs": percent(s), "score": a} for s, a in zip(at, seed, strict=True)]
                for seed in zip(*at.values(), strict=False)
            ]
            means = {s: statistics.mean(at[s]) for s in sorted(at, key=percent, reverse=True)}
            rows.append((network, arm, variant, means, [area(p) for p in points]))
    lines = ["| network | rewrite | objective | accuracy at shares of the MACs | area |", "|---" * 5 + "|"]
    for network, arm, variant, means, areas in sorted(rows, key=lambda r: (r[0], -statistics.mean(r[4]))):
        shown = ", ".join(f"{share}: {mean:.1f}" for share, mean in means.items())
        lines.append(f"| {network} | {arm} | {variant} | {shown} | {_spread(areas)} |")
    return "\n".join(lines)


def percent(share: str) -> float:
    return float(share.rstrip("%"))


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def speed_table() -> str:
    lines = [
        "| network, hidden x rounds | nodes | edges | wiring | forward | backward | peak memory (before the pass) |",
        "|---|---|---|---|---|---|---|",
    ]
    report = json.loads((HERE / "speed.json").read_text())
    for case, r in report["rows"].items():
        lines.append(
            f"| {case} | {r['nodes']:,} | {r['edges']:,} | {r['wire_cpu_s']:.1f} s | {r['forward_cpu_s']:.1f} s "
            f"| {r['backward_cpu_s']:.1f} s | {r['peak_gb']:.1f} GB ({r['before_gb']:.1f}) |"
        )
    slower = report["data_models"]["together_cpu_s"] / report["data_models"]["one_by_one_cpu_s"]
    return "\n".join(lines) + (
        "\n\nTraining four ResNet-20 at once (`torch.func.vmap`) takes "
        f"{slower:.1f} times as long as one after another: on a CPU data models are not batched together."
    )
