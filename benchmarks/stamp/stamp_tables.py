"""Tables of the STAMP study, from the committed results; what was not run is left out."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

STUDY, SPEED = Path(__file__).parent / "resnet8.json", Path(__file__).parent / "speed.json"
NO_RESULTS = "No results yet."
CURVE = ("STAMP", "random, STAMP's widths, pretrained weights", "magnitude, STAMP's widths, pretrained weights")


def _rows() -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """(target, budget, contender) -> one row per seed."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for key, row in json.loads(STUDY.read_text())["rows"].items():
        target, budget, _, label = key.split("/", 3)
        found[target, budget, label].append(row)
    return found


def _spread(rows: list[dict[str, Any]]) -> str:
    values = [100 * r["accuracy"] for r in rows]
    if not values:
        return ""
    return f"{statistics.mean(values):.1f}% ({min(values):.1f} to {max(values):.1f}; {len(values)})"


def targets_table(budget: str = "25%") -> str:
    """Test accuracy by contender and target at one budget, best mean over the targets first."""
    if not STUDY.exists():
        return NO_RESULTS
    rows, config = _rows(), json.loads(STUDY.read_text())["config"]
    targets = [t for t in config["targets"] if any(k[0] == t for k in rows)]
    labels = list(dict.fromkeys(k[2] for k in rows if k[1] in (budget, "100%")))

    def of(target: str, label: str) -> list[dict[str, Any]]:
        return rows.get((target, budget, label)) or rows.get((target, "100%", label)) or []

    def mean(label: str) -> float:
        known = [statistics.mean(r["accuracy"] for r in of(t, label)) for t in targets if of(t, label)]
        return statistics.mean(known) if known else 0.0

    lines = [
        f"| at {budget} of the parameters | {' | '.join(targets)} | parameters |",
        "|---|" + "---|" * (len(targets) + 1),
    ]
    for label in sorted(labels, key=mean, reverse=True):
        params = statistics.mean(r["params"] for t in targets for r in of(t, label))
        lines.append(f"| {label} | {' | '.join(_spread(of(t, label)) for t in targets)} | {params:,.0f} |")
    margin = config["conditioning"]
    return "\n".join(lines) + (
        f"\n\n{config['network']} at {'x'.join(map(str, config['shape']))}, meta-trained on "
        f"{' and '.join(name for name, _ in config['meta_training']['data'])}; {config['steps']} training steps of "
        f"{config['batch']} on the target for all, from "
        f"{', '.join(f'{n} images of {t}' for t, n in config['targets'].items() if t in targets)}; mean (lowest to "
        f"highest seed; number of seeds). Masks of one task agree to a Jaccard of {margin['jaccard_same']:.2f}, of "
        f"different tasks to {margin['jaccard_different']:.2f}."
    )


def curve_table() -> str:
    """Accuracy against kept parameters."""
    if not STUDY.exists():
        return NO_RESULTS
    rows = _rows()
    budgets = sorted({k[1] for k in rows if k[1] != "100%"}, key=lambda b: -float(b[:-1]))
    lines = [f"| by kept parameters | {' | '.join(budgets)} |", "|---|" + "---|" * len(budgets)]
    for target in dict.fromkeys(k[0] for k in rows):
        for label in CURVE:
            cells = [_spread(rows.get((target, budget, label), [])) for budget in budgets]
            lines.append(f"| {target}: {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cost_table(budget: str = "25%") -> str:
    """From the pretrained network to the finished small one: STAMP against train, Taylor, train."""
    if not STUDY.exists():
        return NO_RESULTS
    rows = _rows()
    own = [r for k, rs in rows.items() if k[1:] == (budget, "STAMP") for r in rs]
    other = [r for k, rs in rows.items() if k[1:] == (budget, "train, Taylor, train") for r in rs]
    if not own or not other:
        return NO_RESULTS
    macs = [statistics.mean(r["adapt_macs"] + r["training_macs"] for r in own)]
    macs.append(statistics.mean(r["dense_macs"] + r["training_macs"] for r in other))
    seconds = [statistics.mean(r["adapt_cpu_s"] + r["cpu_s"] for r in own), statistics.mean(r["cpu_s"] for r in other)]
    once = json.loads(STUDY.read_text())["config"]["meta_training"]
    saved = macs[1] - macs[0]
    even = f"{once['macs'] / saved:,.0f} targets" if saved > 0 else "never"
    return "\n".join([
        "| one target | MACs | ratio | CPU s | ratio |",
        "|---|---|---|---|---|",
        f"| STAMP: encode, adapt, train the small network | {macs[0]:.2e} | {macs[0] / macs[1]:.2f} | {seconds[0]:.0f} "
        f"| {seconds[0] / seconds[1]:.2f} |",
        f"| train, Taylor, train | {macs[1]:.2e} | 1 | {seconds[1]:.0f} | 1 |",
        f"\nMeta-training, once: {once['macs']:.2e} MACs, {once['seconds']:,.0f} s; paid back in MACs after {even}. "
        "CPU seconds include evaluation on the test split, cutting and proving.",
    ])  # fmt: skip


def speed_table() -> str:
    """Time of a training step beside its MACs."""
    if not SPEED.exists():
        return NO_RESULTS
    report = json.loads(SPEED.read_text())
    kinds = list(next(iter(report["networks"].values())))
    head = f"step of batch {report['batch']}, one CPU thread: ms (share of the full step's time; of its MACs)"
    lines = [f"| {head} | {' | '.join(kinds)} |", "|---|" + "---|" * len(kinds)]
    for name, row in report["networks"].items():
        cells = []
        for kind in kinds:
            share = row[kind]["macs_ratio"]
            of = "" if share is None else f"; {share:.2f}"
            cells.append(f"{row[kind]['ms']:.0f} ({row[kind]['time_ratio']:.2f}{of})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
