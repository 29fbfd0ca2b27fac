"""How good is a network right after the cut? Trained ResNets on CIFAR-10, nothing trained, no label read but by Taylor.

    python benchmarks/accuracy/run.py --folder ../shared/data --network resnet20 --out benchmarks/accuracy/resnet20.json

FOLDER holds cifar10_jpeg.npz and the network's weights (see benchmarks/README.md). The weights are used as they are;
the images are JPEG copies of those that they were trained on. Seeds choose the calibration samples. Each row is
written as it comes, and the same command continues. Figures are test accuracies. A
few choices of the methods (see benchmarks/README.md) were made on the first 1,500 of the same images with ResNet-20.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import metaprune as mp
from networks import SUBJECTS

L1: dict[str, Any] = {"method": "magnitude", "method_options": {"p": 1}}
MEASURED: dict[str, Any] = {"method": "magnitude", "method_options": {"p": 1, "allocate": "sensitivity"}}
BN: dict[str, Any] = {"recover": "bn"}
LEAST_SQUARES: dict[str, Any] = {"compensate": "least-squares"}


def method(name: str, **options: Any) -> dict[str, Any]:
    return {"method": name, "method_options": options}


LABELS: dict[str, dict[str, Any]] = {
    "magnitude (L1), BatchNorm": {**L1, "recover": "bn"},
    "uniform, BatchNorm": {**method("uniform", fill=True), "recover": "bn"},
    "magnitude (L1), least squares": {**L1, "compensate": "least-squares"},
    "sensitivity (L1), least squares": {**MEASURED, "compensate": "least-squares"},
    "obs, least squares": {**method("obs"), **LEAST_SQUARES},
    "uniform widths (obs), least squares": {**method("obs", allocate="uniform"), **LEAST_SQUARES},
    "sensitivity (obs), least squares": {**method("obs", allocate="sensitivity"), **LEAST_SQUARES},
    "variance, least squares": {**method("variance"), **LEAST_SQUARES},
    "activation, least squares": {**method("activation"), **LEAST_SQUARES},
    "taylor (reads labels), least squares": {**method("taylor"), **LEAST_SQUARES},
    "obs, BatchNorm": {**method("obs"), **BN},
    "variance, BatchNorm": {**method("variance"), **BN},
    "activation, BatchNorm": {**method("activation"), **BN},
    "taylor (reads labels), BatchNorm": {**method("taylor"), **BN},
    "sensitivity (variance), least squares": {**method("variance", allocate="sensitivity"), **LEAST_SQUARES},
    "auto: sensitivity (activation), least squares": {},
}


def main() -> None:
    parser = parser_of(__doc__, seeds=3, budgets=["70%", "50%", "30%"])
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--labels", nargs="+", default=list(LABELS), choices=LABELS)

    def row(model: torch.nn.Module, data: mp.Data, budget: str, seed: int, label: str) -> dict[str, Any]:
        return row_of(model, data, budget, seed, LABELS[label])

    options = parser.parse_args()
    add_rows(options, options.labels, row)


def parser_of(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Make the parser of what `add_rows` reads, of ResNet-20 unless the script asks."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--budgets", nargs="+", help="shares of the MACs")
    parser.add_argument("--images", type=int, default=2000, help="test images")
    parser.set_defaults(network="resnet20", **defaults)
    return parser


def add_rows(options: argparse.Namespace, labels: Sequence[str], row_of: Callable[..., dict[str, Any]]) -> None:
    """Measure what is not in the report yet; `row_of` is given model, data, budget, seed and label."""
    torch.set_num_threads(1)
    subject = SUBJECTS[options.network]
    model, data = subject.network(options.folder), subject.samples(options.folder, options.images)
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    done = {(row["label"], row["budget"], row["seed"]) for row in rows}
    for seed, budget, label in itertools.product(range(options.seeds), options.budgets, labels):
        if (label, budget, seed) not in done:
            row = row_of(model, data, budget, seed, label)
            rows.append({"label": label, "budget": budget, "seed": seed, **row})
            print(rows[-1], flush=True)
            write(options, data, rows)


def row_of(model: torch.nn.Module, data: mp.Data, budget: str, seed: int, arguments: dict[str, Any]) -> dict[str, Any]:
    """Figures of one prune, and its CPU seconds with trace and evaluations."""
    began = time.process_time()
    example, bound = torch.zeros(2, 3, 32, 32), f"macs={budget}"
    result = mp.prune(model, example, budget=bound, data=data, seed=seed, progress=False, **arguments)
    total = time.process_time() - began
    record = result.record
    quality, compensation = record["quality"], record["compensation"] or {}
    return {
        "accuracy": (quality["recovered"] or quality["cut"])["accuracy"],
        "dense": quality["dense"]["accuracy"],
        "macs": record["cost"]["after"]["macs"],
        "full_macs": record["cost"]["before"]["macs"],
        "proof_error": record["proof"]["error"],
        "widths": [g["after"] for g in record["space"]["groups"]],
        "compensation_bytes": compensation.get("bytes"),
        "seconds": {name: round(s, 1) for name, s in record["seconds"].items()},
        "cpu_s_with_evaluation": round(total, 1),
    }


def write(options: argparse.Namespace, data: mp.Data, rows: list[dict[str, Any]]) -> None:
    report = {
        "question": "accuracy right after the cut, without training and without labels",
        "model": f"zoo:{options.network}",
        "data": Path(data.name).name,
        "test_images": options.images,
        "environment": {"torch": torch.__version__, "python": platform.python_version(), "threads": 1},
        "rows": rows,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
