"""The tables of benchmarks/accuracy: accuracy right after the cut, by row and budget."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

HERE = Path(__file__).parent


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


def photographs_table() -> str:
    """Top-1 and agreement with the dense network by row and budget; CPU and wall seconds without the evaluation."""
    report = json.loads((HERE / "mobilenet_v2.json").read_text())
    lines = [
        "| MobileNetV2, ImageNet | MACs | parameters | top-1 | agrees with dense | CPU s | wall s |",
        "|---" * 7 + "|",
        f"| dense | | | {report['dense']:.1%} | | | |",
    ]
    for row in report["rows"]:
        share = f"{row['macs'] / row['full_macs']:.1%} | {row['params'] / 1e6:.2f} M"
        figures = f"{row['accuracy']:.1%} | {row['agreement']:.1%} | {row['cpu_s']:.0f} | {row['wall_s']:.0f}"
        lines.append(f"| {row['label']} | {share} | {figures} |")
    return (
        "\n".join(lines) + f"\n\n{report['test_images']} photographs, {report['calibration_images']} others calibrate."
    )


def _cell(accuracies: list[float]) -> str:
    if not accuracies:
        return ""
    mean = f"{statistics.mean(accuracies):.1%}"
    spread = f" ({min(accuracies):.1%} to {max(accuracies):.1%}; {len(accuracies)})"
    return mean + spread if len(accuracies) > 1 else mean
