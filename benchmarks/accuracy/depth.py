"""Whole branches or narrower ones? ResNet-20 on CIFAR-10; the same of a language model is in benchmarks/language.

    python benchmarks/accuracy/depth.py --folder ../shared/data --out benchmarks/accuracy/depth.json

Data as for run.py. Nothing is trained; weights behind the cut are solved anew (least squares). One seed. Each row is
written as it comes, and the same command continues.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import metaprune as mp
from metaprune.core.imports import allow_torchvision_import
from networks import SUBJECTS

IMAGES = 2000
COSINE, LOSS = {"criterion": "cosine"}, {"criterion": "loss"}
AUTO = {"allocate": "sensitivity"}
# label -> method, options, least channels
ROWS: dict[str, tuple[str, dict[str, Any], int]] = {
    "width: sensitivity (activation)": ("activation", AUTO, 1),
    "depth: cosine": ("depth", COSINE, 1),
    "depth: loss": ("depth", LOSS, 1),
    "both: sensitivity (activation), min_keep=0": ("activation", AUTO, 0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budgets", nargs="+", default=["95%", "90%"], help="shares of the parameters")
    options = parser.parse_args()
    torch.set_num_threads(1)
    allow_torchvision_import()
    report = json.loads(options.out.read_text()) if options.out.exists() else new_report()
    done = {(row["label"], row["budget"]) for row in report["rows"]}
    for row in rows_of(options, done):
        report["rows"].append(row)
        print(report["rows"][-1], flush=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def new_report() -> dict[str, Any]:
    return {
        "question": "accuracy right after the cut, branches dropped or narrowed",
        "test_images": IMAGES,
        "environment": {"torch": torch.__version__, "python": platform.python_version(), "threads": 1},
        "rows": [],
    }


def rows_of(options: argparse.Namespace, done: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    subject = SUBJECTS["resnet20"]
    model, data = subject.network(options.folder), subject.samples(options.folder, IMAGES)
    for budget in options.budgets:
        for label, (name, method_options, least) in ROWS.items():
            if (label, budget) in done:
                continue
            began = time.process_time()
            result = mp.prune(
                model,
                subject.example,
                budget=f"params={budget}",
                data=data,
                method=name,
                method_options=method_options,
                min_keep=least,
                compensate="least-squares",
                progress=False,
            )
            quality = result.record["quality"]
            yield {
                "label": label,
                "budget": budget,
                "accuracy": (quality["recovered"] or quality["cut"])["accuracy"],
                "dense": quality["dense"]["accuracy"],
                **shares(result.pruned),
                "cpu_s": round(time.process_time() - began, 1),
            }


def shares(pruned: Any) -> dict[str, Any]:
    """What was dropped, what is left, and whether that is proved."""
    network, plan = pruned.network, pruned.plan
    whole, left = network.cost(), network.cost(plan)
    dropped = [b.name for b in network.branches if all(not plan.keep.get(g, (0,)) for g in b.groups)]
    return {
        "params_share": round(left.params / whole.params, 4),
        "macs_share": round(left.macs / whole.macs, 4),
        "dropped": dropped,
        "proof_error": pruned.error,
    }


if __name__ == "__main__":
    main()
