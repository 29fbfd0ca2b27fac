"""Tables of the latency benchmarks, from the committed results."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
ERRORS = HERE / "results.json"
PRUNINGNET = HERE.parent / "pruningnet"
SEARCHES = {  # results, rows of the searches under MACs, how these are labelled
    "mobilenet": (HERE / "search.json", PRUNINGNET / "mobilenet_fashion.json", "generated (paper)"),
    "plain": (HERE / "search_plain.json", PRUNINGNET / "plain_cifar10.json", "shared, likelihood"),
}
MACS, LABELS = "searched for MACs", ("searched for MACs", "searched for milliseconds", "uniform")


def error_table() -> str:
    """How far predicted milliseconds are from measured ones, end to end, and what a prediction takes."""
    report = json.loads(ERRORS.read_text())
    lines = [
        "| network, runtime, device, batch | measured structures | checked structures | median error "
        "| 90th percentile | largest | rank correlation | us per candidate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in report.items():
        error = row["error"]
        parts = " | ".join(
            f"{100 * error[k]:.1f}%" for k in ("median_relative_error", "p90_relative_error", "largest_relative_error")
        )
        lines.append(
            f"| {name} | {row['protocol']['measured_structures']} | {error['structures']} | {parts} "
            f"| {error['spearman']:.3f} | {row['microseconds_per_candidate']:.2f} |"
        )
    first = next(iter(report.values()))
    how = first["protocol"]
    return "\n".join(lines) + (
        f"\n\n{first['device_name']}, {how['threads']} thread, {how['clock']} clock, median of {how['repeats']} after "
        f"{how['warmup']} warm-up runs, PyTorch {first['versions']['torch']}."
    )


def search_table(case: str = "mobilenet") -> str:
    """Structures of equal milliseconds: found under MACs, found under milliseconds, uniform."""
    file, under, search = SEARCHES[case]
    report = json.loads(file.read_text())
    rows, under_macs = report["rows"], json.loads(under.read_text())["rows"]
    found: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for key, row in rows.items():
        if key.startswith("final/"):
            _, label, budget, seed = key.split("/")
            times = rows[f"ms/{budget}/{seed}"]
            into = found[budget][label]
            searches = {
                MACS: under_macs[f"search/{search}/{budget}/{seed}"],
                LABELS[1]: rows[f"search/{budget}/{seed}"],
            }
            into["score"] += [100 * searches[label]["score"]] if label in searches else []
            into["accuracy"].append(100 * row["accuracy"])
            into["macs"].append(row["macs"] / 1e6)
            into["predicted"].append(times[label]["predicted_ms"])
            into["ratio"].append(times[label]["measured_ms"] / times[MACS]["measured_ms"])
    lines = [
        "| milliseconds of the search under | structure | test accuracy | score in the search, % | MACs "
        "| ms, predicted | ms, measured (1: searched for MACs) |",
        "|---|---|---|---|---|---|---|",
    ]
    gains = []
    for budget in sorted(found, key=lambda b: -float(b[:-1])):
        by = found[budget]
        lines += [f"| {budget} of the MACs | {label} | {_columns(by[label])} |" for label in LABELS]
        pairs = zip(by[LABELS[1]]["accuracy"], by[MACS]["accuracy"], strict=True)
        gains.append(f"{budget}: {', '.join(f'{a - b:+.2f}' for a, b in pairs)}")
    table, error = rows["table"], rows["table"]["error"]
    return "\n".join(lines) + (
        f"\n\n{report['config']['network']}, batch {table['batch']}, one thread's processor time; the full network "
        f"takes {table['full_ms']:.2f} ms. The table's median error is {100 * error['median_relative_error']:.1f}%, "
        f"its rank correlation {error['spearman']:.3f}, on {error['structures']} structures. Mean (lowest to highest "
        "seed; number of seeds). Points gained by searching for milliseconds instead of MACs, seed by seed: "
        f"{'; '.join(gains)}."
    )


def _columns(values: dict[str, list[float]]) -> str:
    accuracy = values["accuracy"]
    macs, predicted, ratio = (statistics.mean(values[k]) for k in ("macs", "predicted", "ratio"))
    spread = f"{min(accuracy):.2f} to {max(accuracy):.2f}; {len(accuracy)}"
    score = f"{statistics.mean(values['score']):.1f}" if values["score"] else ""
    return f"{statistics.mean(accuracy):.2f}% ({spread}) | {score} | {macs:.2f} M | {predicted:.2f} | {ratio:.2f}"
