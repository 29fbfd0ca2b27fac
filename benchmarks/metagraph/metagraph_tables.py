"""Tables of the graph metanetwork's study and speed, from the committed JSON."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def _rows() -> dict[str, Any]:
    return json.loads((HERE / "cifar10.json").read_text())["rows"]


def _split(rows: dict[str, Any]) -> list[tuple[str, str, int, str, str, float, dict]]:
    """(variant, network, seed, arm, share, epochs, row) of every pruned network."""
    found = []
    for key, row in rows.items():
        if not key.startswith("meta-training/") and not key.endswith("/masks"):
            variant, network, seed, arm, share, epochs = key.split("/")
            found.append((variant, network, int(seed), arm, share, float(epochs.split()[0]), row))
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


def cut_table() -> str:
    """Test accuracy right after the cut, BatchNorm re-estimated, nothing trained: mean over seeds."""
    cells: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for variant, network, _, arm, share, epochs, row in _split(_rows()):
        if not epochs:
            cells[network, arm, variant][share].append(100 * row["accuracy"])
    if not cells:
        return "Not run yet."
    shares = sorted({s for c in cells.values() for s in c}, key=lambda s: -float(s.rstrip("%")))
    lines = [
        f"| network | rewrite | objective | {' | '.join(shares)} of MACs | seeds |",
        "|---" * (4 + len(shares)) + "|",
    ]
    for (network, arm, variant), found in sorted(cells.items()):
        values = [f"{statistics.mean(found[s]):.1f}" if found[s] else "" for s in shares]
        seeds = max(len(v) for v in found.values())
        lines.append(f"| {network} | {arm} | {variant} | {' | '.join(values)} | {seeds} |")
    return "\n".join(lines)


def masks_table() -> str:
    """Test accuracy with single weights held at zero, BatchNorm re-estimated, nothing trained: mean over seeds."""
    cells: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, row in _rows().items():
        if key.endswith("/masks"):
            _, network, _, arm, pattern, _ = key.split("/")
            at = f"{pattern.split()[0]}, {100 * row['nonzero']:.0f}% left"
            cells[network, arm][at].append(100 * row["accuracy"])
    if not cells:
        return "Not run yet."
    columns = list(dict.fromkeys(c for found in cells.values() for c in found))
    lines = [f"| network | rewrite | {' | '.join(columns)} | seeds |", "|---" * (3 + len(columns)) + "|"]
    for (network, arm), found in sorted(cells.items()):
        values = [f"{statistics.mean(found[c]):.1f}" if found[c] else "" for c in columns]
        lines.append(f"| {network} | {arm} | {' | '.join(values)} | {max(len(v) for v in found.values())} |")
    return "\n".join(lines)


def tuned_table() -> str:
    """Test accuracy after equal fine-tuning: mean, lowest and highest over seeds."""
    cells: dict[tuple, list[tuple[float, float]]] = defaultdict(list)
    for variant, network, _, arm, share, epochs, row in _split(_rows()):
        if epochs:
            cells[network, share, epochs, arm, variant].append((100 * row["accuracy"], 100 * row["cut"]))
    if not cells:
        return "Not run yet."
    lines = [
        "| network | MACs | epochs | rewrite | objective | accuracy | right after the cut | seeds |",
        "|---" * 8 + "|",
    ]
    for (network, share, epochs, arm, variant), found in sorted(
        cells.items(), key=lambda i: (i[0][:3], -statistics.mean(a for a, _ in i[1]))
    ):
        values = [a for a, _ in found]
        spread = f"{statistics.mean(values):.2f}% ({min(values):.2f} to {max(values):.2f})"
        cut = statistics.mean(c for _, c in found)
        lines.append(f"| {network} | {share} | {epochs:g} | {arm} | {variant} | {spread} | {cut:.1f}% | {len(found)} |")
    return "\n".join(lines)


def speed_table() -> str:
    lines = [
        "| network, hidden x rounds | nodes | edges | wiring | forward | backward | peak memory (before the pass) |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, r in json.loads((HERE / "speed.json").read_text())["rows"].items():
        lines.append(
            f"| {case} | {r['nodes']:,} | {r['edges']:,} | {r['wire_cpu_s']:.1f} s | {r['forward_cpu_s']:.1f} s "
            f"| {r['backward_cpu_s']:.1f} s | {r['peak_gb']:.1f} GB ({r['before_gb']:.1f}) |"
        )
    return "\n".join(lines)
