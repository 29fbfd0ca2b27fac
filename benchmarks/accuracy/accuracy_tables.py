"""The tables of benchmarks/accuracy: accuracy right after the cut, by row and budget."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

HERE = Path(__file__).parent
INNER = "auto, inner channels alone"


def after_cut_table(network: str) -> str:
    """Mean over seeds (lowest to highest; how many, where there are several); mean CPU seconds over all budgets."""
    report = json.loads((HERE / f"{network}.json").read_text())
    rows = report["rows"]
    budgets, labels = (list(dict.fromkeys(row[key] for row in rows)) for key in ("budget", "label"))
    dense = f"{rows[0]['dense']:.1%}"
    lines = [
        f"| {network} | {' | '.join(f'{b} of the MACs' for b in budgets)} | CPU seconds |",
        "|---" * (len(budgets) + 2) + "|",
        f"| dense | {' | '.join([dense] * len(budgets))} | |",
    ]
    for label in labels:
        cells = [_cell([r["accuracy"] for r in rows if (r["label"], r["budget"]) == (label, b)]) for b in budgets]
        spent = [r["cpu_s_with_evaluation"] for r in rows if r["label"] == label]
        lines.append(f"| {label} | {' | '.join(cells)} | {statistics.mean(spent):.0f} |")
    seeds = len({row["seed"] for row in rows})
    note = (
        f"\n{report['test_images']:,} test images, calibration samples of {seeds} seed{'s' if seeds > 1 else ''}. "
        "CPU seconds of the whole prune on one thread, with trace, proof and evaluations of both networks."
    )
    return "\n".join(lines) + "\n" + note


def recovery_table() -> str:
    """Accuracy by cut, budget and recovery, mean over seeds."""
    rows = json.loads((HERE / "recovery.json").read_text())["rows"]
    cuts, kinds = (list(dict.fromkeys(row["label"].rpartition(", ")[i] for row in rows)) for i in (0, 2))
    lines = [f"| cut | MACs | {' | '.join(kinds)} |", "|---" * (len(kinds) + 2) + "|"]
    for budget in dict.fromkeys(row["budget"] for row in rows):
        for cut in cuts:
            of_cut = [row for row in rows if row["budget"] == budget]
            cells = [_cell([r["accuracy"] for r in of_cut if r["label"] == f"{cut}, {kind}"]) for kind in kinds]
            lines.append(f"| {cut} | {budget} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\nResNet-20, dense 83.3%. One pass over 5,000 images, rates found by the ramp."


def depth_table() -> str:
    """Accuracy by row, at each budget, with the branches that went."""
    report = json.loads((HERE / "depth.json").read_text())
    rows = report["rows"]
    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    lines = [f"| resnet20 | {' | '.join(f'{b} of the parameters | dropped' for b in budgets)} | CPU seconds |"]
    lines.append("|---" * (2 * len(budgets) + 2) + "|")
    lines.append(f"| dense | {' | | '.join([format(rows[0]['dense'], '.1%')] * len(budgets))} | | |")
    for label in dict.fromkeys(row["label"] for row in rows):
        of_label = {row["budget"]: row for row in rows if row["label"] == label}
        cells = [_depth_cell(of_label.get(b)) for b in budgets]
        spent = statistics.mean(row["cpu_s"] for row in of_label.values())
        lines.append(f"| {label} | {' | '.join(cells)} | {spent:.0f} |")
    return "\n".join(lines) + (
        f"\n\nAccuracy on {report['test_images']:,} test images, least squares behind the cut, CPU seconds of the "
        "whole prune."
    )


def _depth_cell(row: dict | None) -> str:
    """Accuracy with the share that is left, and how many branches went, by their last name."""
    if row is None:
        return " | "
    kinds = [name.rpartition(".")[2] for name in row["dropped"]]
    dropped = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    return f"{row['accuracy']:.1%} ({row['params_share']:.1%} left) | {dropped}"


def vocabulary_table() -> str:
    """Tokens, parameters and length of texts by how often a token has to occur."""
    report = json.loads((HERE / "vocabulary.json").read_text())
    dense = report["dense"]
    lines = [
        f"| a token stays that occurs | tokens | parameters | tokens of the first {report['counted_texts']} texts |",
        "|---" * 4 + "|",
        f"| (before) | {dense['kept']:,} | {dense['params']:,} | {dense['tokens']:,} |",
    ]
    for row in report["rows"]:
        share = f"{row['params']:,} ({row['params'] / dense['params']:.1%})"
        often = f"{row['min_count']} time{'s' if row['min_count'] > 1 else ''} or more"
        lines.append(f"| {often} | {row['kept']:,} | {share} | {row['tokens']:,} |")
    worst = max(row["proof_error"] for row in report["rows"])
    return "\n".join(lines) + f"\n\nRelative error of the proof at most {worst:.0e}."


NAMES = {
    "resnet20": "ResNet-20, CIFAR-10",
    "resnet56": "ResNet-56, CIFAR-10",
    "vgg19": "VGG-19 x0.2, Fashion",
    "mobilenet_v1": "MobileNetV1 x0.25, Fashion",
    "vit": "ViT, Fashion",
    "mobilenet_v2": "MobileNetV2, ImageNet",
    "efficientnet_lite0": "EfficientNet-Lite0, ImageNet",
}
HEADS = {
    "magnitude (L1), BatchNorm": "magnitude",
    "magnitude (L1), least squares": "magnitude, least squares",
    "auto": "auto",
    "Torch-Pruning, magnitude (L2), BatchNorm": "TP magnitude",
    "Torch-Pruning, magnitude (L2), every layer alike, BatchNorm": "TP magnitude, layers alike",
    "Torch-Pruning, Taylor (reads labels), BatchNorm": "TP Taylor",
    "Torch-Pruning, Hessian (reads labels), BatchNorm": "TP Hessian",
}


def study_table(figure: str) -> str:
    """Accuracy by network, budget and label, mean over seeds; `figure` is `accuracy` or `recovered`. The best is bold.

    In ResNets Torch-Pruning is given inner channels alone; a row of `auto` with these alone stands below.
    """
    rows = [r for r in json.loads((HERE / "study.json").read_text())["rows"] if r[figure] is not None]
    lines = [f"| network | MACs | dense | {' | '.join(HEADS.values())} |", "|---" * (len(HEADS) + 3) + "|"]
    for network in (n for n in NAMES if any(r["network"] == n for r in rows)):
        for budget in sorted({r["budget"] for r in rows if r["network"] == network}, reverse=True):
            found = [r for r in rows if (r["network"], r["budget"]) == (network, budget)]
            by_label = {h: [r[figure] for r in found if r["label"] == h] for h in (*HEADS, INNER)}
            means = {h: statistics.mean(v) for h, v in by_label.items() if v}
            best = max(v for h, v in means.items() if h != INNER)
            cells = [_best(by_label[h], best) for h in HEADS]
            lines.append(f"| {NAMES[network]} | {budget} | {found[0]['dense']:.1%} | {' | '.join(cells)} |")
            if by_label[INNER]:
                inner = [_best(by_label[INNER], 2) if h == "auto" else "" for h in HEADS]
                lines.append(f"| inner channels alone | {budget} | | {' | '.join(inner)} |")
    return "\n".join(lines)


def seconds_table() -> str:
    """CPU seconds of a whole prune by network and label, mean over budgets and seeds."""
    rows = json.loads((HERE / "study.json").read_text())["rows"]
    lines = [f"| network | {' | '.join(HEADS.values())} |", "|---" * (len(HEADS) + 1) + "|"]
    for network in (n for n in NAMES if any(r["network"] == n for r in rows)):
        spent = [[r["cpu_s"] for r in rows if (r["network"], r["label"]) == (network, h)] for h in HEADS]
        lines.append(f"| {NAMES[network]} | {' | '.join(f'{statistics.mean(s):.0f}' if s else '' for s in spent)} |")
    return "\n".join(lines)


def milliseconds_table() -> str:
    """Accuracy, measured share of the milliseconds and share of the MACs by label, mean over seeds."""
    path = HERE / "milliseconds.json"
    if not path.exists():
        return "No results yet."
    rows = json.loads(path.read_text())["rows"]
    lines = ["| ResNet-20 at 70% of the milliseconds | accuracy | measured | MACs | CPU seconds |", "|---" * 5 + "|"]
    for label in dict.fromkeys(row["label"] for row in rows):
        own = [row for row in rows if row["label"] == label]
        measured, macs, spent = (statistics.mean(r[k] for r in own) for k in ("ms_share", "macs_share", "cpu_s"))
        lines.append(f"| {label} | {_cell([r['accuracy'] for r in own])} | {measured:.1%} | {macs:.1%} | {spent:.0f} |")
    return "\n".join(lines) + f"\n\nDense {rows[0]['dense']:.1%}; batches of 32, eager, processor time of one thread."


def detector_table() -> str:
    """Error of CenterFace's outputs by row and budget."""
    rows = json.loads((HERE / "centerface.json").read_text())["rows"]
    budgets = list(dict.fromkeys(row["budget"] for row in rows))
    lines = [f"| CenterFace | {' | '.join(budgets)} of the MACs | CPU seconds |", "|---" * (len(budgets) + 2) + "|"]
    for label in dict.fromkeys(row["label"] for row in rows):
        of_label = {row["budget"]: row for row in rows if row["label"] == label}
        cells = [f"{of_label[b]['output_error']:.1%}" if b in of_label else "" for b in budgets]
        spent = statistics.mean(row["cpu_s"] for row in of_label.values())
        lines.append(f"| {label} | {' | '.join(cells)} | {spent:.0f} |")
    return "\n".join(lines)


def _best(figures: list[float], best: float) -> str:
    if not figures:
        return ""
    mean = statistics.mean(figures)
    spread = f" ({min(figures):.1%} to {max(figures):.1%}; {len(figures)})" if len(figures) > 1 else ""
    return f"**{mean:.1%}**{spread}" if mean >= best else f"{mean:.1%}{spread}"


def _cell(accuracies: list[float]) -> str:
    if not accuracies:
        return ""
    mean = f"{statistics.mean(accuracies):.1%}"
    spread = f" ({min(accuracies):.1%} to {max(accuracies):.1%}; {len(accuracies)})"
    return mean + spread if len(accuracies) > 1 else mean
