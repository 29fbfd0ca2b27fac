"""Write the READMEs' tables from the committed results: `python benchmarks/tables.py` (`--check` only compares)."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
sys.path += [str(HERE / "coverage"), str(HERE / "latency"), str(HERE / "pruningnet"), str(HERE / "stamp")]
sys.path += [str(HERE / "metagraph"), str(HERE / "jobs"), str(HERE / "accuracy"), str(HERE / "faults")]
sys.path += [str(HERE / "language")]

from accuracy_tables import (  # noqa: E402
    after_cut_table,
    depth_table,
    detector_table,
    milliseconds_table,
    recovery_table,
    seconds_table,
    study_table,
    vocabulary_table,
)
from coverage_tables import coverage_all_table, coverage_summary_table, coverage_table  # noqa: E402
from faults_tables import faults_rest_table, faults_table  # noqa: E402
from jobs_tables import jobs_table, taylor_table  # noqa: E402
from language_tables import cut_table as language_cut_table  # noqa: E402
from language_tables import encoder_table, vocabulary_first_table  # noqa: E402
from language_tables import recovery_table as language_recovery_table  # noqa: E402
from language_tables import speed_table as language_speed_table  # noqa: E402
from latency_tables import error_table, search_table  # noqa: E402
from metagraph_tables import area_table, cut_table, meta_table, rates_table, tuned_table  # noqa: E402
from metagraph_tables import masks_table as metagraph_masks_table  # noqa: E402
from metagraph_tables import speed_table as metagraph_speed_table  # noqa: E402
from outside_tables import outside_rest_table, outside_table  # noqa: E402
from pruningnet_tables import (  # noqa: E402
    BRIEF_GLYPHS,
    GLYPHS,
    MOBILENET,
    RESNET,
    budgets_table,
    cost_table,
    rank_table,
    screening_table,
    speed_table,
    tuned_rank_table,
)
from score_tables import families_table, networks_table, rules_table  # noqa: E402
from score_tables import zoo_table as score_zoo_table  # noqa: E402
from stamp_tables import (  # noqa: E402
    RANGE,
    choices_table,
    curve_table,
    domains_headroom_table,
    domains_table,
    fits_table,
    masks_table,
    peers_table,
    targets_table,
)
from stamp_tables import cost_table as stamp_cost_table  # noqa: E402
from stamp_tables import speed_table as stamp_speed_table  # noqa: E402


def methods_table() -> str:
    """Mean and spread (lowest to highest) over seeds, in the order of accuracy."""
    report = json.loads((HERE / "methods" / "resnet20_cifar10.json").read_text())
    dense = report["dense"]
    lines = [
        "| method | test accuracy, mean (lowest to highest seed) | before recovery | MACs | parameters |",
        "|---|---|---|---|---|",
        f"| dense | {100 * dense['accuracy']:.2f}% | | {dense['macs'] / 1e6:.2f} M | {dense['params']:,} |",
    ]
    by_label: dict[str, list[dict]] = {}
    for row in report["rows"]:
        by_label.setdefault(row["label"], []).append(row)
    ranked = sorted(by_label.items(), key=lambda item: -statistics.mean(r["accuracy"] for r in item[1]))
    for label, rows in ranked:
        accuracy = [100 * r["accuracy"] for r in rows]
        cut = statistics.mean(100 * r["cut_accuracy"] for r in rows)
        macs = statistics.mean(r["macs"] for r in rows)
        params = statistics.mean(r["params"] for r in rows)
        lines.append(
            f"| {label} | {statistics.mean(accuracy):.2f}% ({min(accuracy):.2f} to {max(accuracy):.2f}) | {cut:.1f}% "
            f"| {macs / 1e6:.2f} M ({100 * macs / dense['macs']:.1f}%) | {params:,.0f} |"
        )
    seeds = len(next(iter(by_label.values())))
    note = (
        f"\nResNet-20 on JPEG copies of CIFAR-10, budget {report['budget']}, {seeds} seeds, the same "
        f"{report['epochs']:g} epochs of fine-tuning on {report['train_images']:,} images for all, "
        f"{report['test_images']:,} test images ({report['cut_accuracy_images']:,} before recovery)."
    )
    return "\n".join(lines) + "\n" + note


def overhead_table() -> str:
    report = json.loads((HERE / "overhead" / "resnet18.json").read_text())
    ms = report["median_ms"]
    ratio = {name: f"{value / ms['eager_full']:.2f}" for name, value in ms.items()}
    return "\n".join(
        [
            "| ResNet-18, batch 64, 32x32, one CPU thread | ms | ratio |",
            "|---|---|---|",
            f"| eager, full | {ms['eager_full']} | 1 |",
            f"| executor, full | {ms['executor_full']} | {report['executor_over_eager']:.2f} |",
            f"| module form, half of every group | {ms['eager_module_form_50']} | {ratio['eager_module_form_50']} |",
            f"| graph form, the same | {ms['graph_form_50']} | {ratio['graph_form_50']} |",
            f"| executor, the same, sliced on each forward | {ms['executor_50_sliced_each_forward']} "
            f"| {ratio['executor_50_sliced_each_forward']} |",
            f"\nThe cost model takes {report['cost_model_us_per_candidate']:.2f} us per candidate (10,000 at once).",
        ]
    )


TABLES: dict[str, Callable[[], str]] = {
    "methods": methods_table,
    "after-cut-resnet20": partial(after_cut_table, "resnet20"),
    "after-cut-study": partial(study_table, "accuracy"),
    "after-pass-study": partial(study_table, "recovered"),
    "after-cut-seconds": seconds_table,
    "after-cut-detector": detector_table,
    "after-cut-milliseconds": milliseconds_table,
    "after-cut-depth": depth_table,
    "after-cut-recovery": recovery_table,
    "language-cut": language_cut_table,
    "language-recovery": language_recovery_table,
    "language-speed": language_speed_table,
    "language-vocabulary": vocabulary_first_table,
    "language-encoder": encoder_table,
    "vocabulary": vocabulary_table,
    "overhead": overhead_table,
    "faults": faults_table,
    "faults-rest": faults_rest_table,
    "jobs": jobs_table,
    "jobs-taylor": taylor_table,
    "coverage": coverage_table,
    "coverage-summary": coverage_summary_table,
    "coverage-all": coverage_all_table,
    "coverage-outside": outside_table,
    "coverage-outside-rest": outside_rest_table,
    "pruningnet-budgets": partial(budgets_table, MOBILENET),
    "pruningnet-budgets-resnet": partial(budgets_table, RESNET),
    "pruningnet-glyphs": partial(budgets_table, GLYPHS),
    "pruningnet-glyphs-brief": partial(budgets_table, BRIEF_GLYPHS),
    "pruningnet-rank-glyphs": partial(rank_table, BRIEF_GLYPHS),
    "pruningnet-tuned-glyphs": partial(tuned_rank_table, BRIEF_GLYPHS),
    "pruningnet-rank": partial(rank_table, MOBILENET),
    "pruningnet-rank-resnet": partial(rank_table, RESNET),
    "pruningnet-cost": partial(cost_table, MOBILENET),
    "pruningnet-cost-resnet": partial(cost_table, RESNET),
    "pruningnet-speed": speed_table,
    "pruningnet-screening": screening_table,
    "latency-error": error_table,
    "latency-search": search_table,
    "latency-search-plain": partial(search_table, "plain"),
    "stamp-targets": targets_table,
    "stamp-peers": peers_table,
    "stamp-masks": masks_table,
    "stamp-masks-range": partial(masks_table, study=RANGE),
    "stamp-curve": curve_table,
    "stamp-fits": fits_table,
    "stamp-choices": choices_table,
    "stamp-cost": stamp_cost_table,
    "stamp-speed": stamp_speed_table,
    "stamp-domains": domains_table,
    "stamp-headroom": domains_headroom_table,
    "metagraph-score-zoo": score_zoo_table,
    "metagraph-score-families": families_table,
    "metagraph-score-networks": networks_table,
    "metagraph-score-rules": rules_table,
    "metagraph-meta": meta_table,
    "metagraph-cut": cut_table,
    "metagraph-masks": metagraph_masks_table,
    "metagraph-rates": rates_table,
    "metagraph-area": area_table,
    "metagraph-tuned": tuned_table,
    "metagraph-speed": metagraph_speed_table,
}


def render(text: str) -> str:
    for name, make in TABLES.items():
        start, end = f"<!-- table:{name} (generated by benchmarks/tables.py) -->", f"<!-- end:{name} -->"
        if start in text:
            before, _, rest = text.partition(start)
            _, _, after = rest.partition(end)
            text = f"{before}{start}\n{make()}\n{end}{after}"
    return text


def main() -> int:
    stale = []
    for path in (
        HERE.parent / "README.md",
        HERE / "README.md",
        DOCS / "coverage.md",
        DOCS / "transformers.md",
        DOCS / "results.md",
    ):
        text = path.read_text()
        fresh = render(text)
        if fresh != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(fresh)
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
