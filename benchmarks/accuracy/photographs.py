"""How good is MobileNetV2 right after the cut? ImageNet weights, 500 photographs, nothing trained, no label read.

    python benchmarks/accuracy/photographs.py --photos FILE.npz --out benchmarks/accuracy/mobilenet_v2.json

Two of five photographs calibrate, the others judge. Where torchvision's weights cannot be fetched, `--weights` takes
their file (see benchmarks/README.md). The seed chooses what calibration draws. Each row is written as it comes, and the
same command continues.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import metaprune as mp
from metaprune.data import TensorSplit
from metaprune.data.npz import decode_packed
from metaprune.models import create

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 25
L1: dict[str, Any] = {"method": "magnitude", "method_options": {"p": 1}}
ACTIVATION = {"method": "activation", "method_options": {"allocate": "sensitivity"}}
LEAST_SQUARES = {"compensate": "least-squares"}
LABELS: dict[str, dict[str, Any]] = {
    "magnitude (L1), BatchNorm": {**L1, "recover": "bn"},
    "magnitude (L1), least squares": {**L1, **LEAST_SQUARES},
    "sensitivity (activation), least squares": {**ACTIVATION, **LEAST_SQUARES},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budgets", nargs="+", default=["80%"], help="shares of the MACs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    calibration, test = photographs(options.photos)
    model = create("torchvision:mobilenet_v2", weights=options.weights).eval()
    dense = classes(model, test)
    report = json.loads(options.out.read_text()) if options.out.exists() else new_report(len(calibration), test, dense)
    done = {(row["label"], row["budget"]) for row in report["rows"]}
    for budget in options.budgets:
        for label, arguments in LABELS.items():
            if (label, budget) not in done:
                row = row_of(model, (calibration, test), dense, budget, arguments)
                report["rows"].append({"label": label, "budget": budget, "seed": 0, **row})
                print(report["rows"][-1], flush=True)
                options.out.write_text(json.dumps(report, indent=1) + "\n")


def photographs(file: Path) -> tuple[TensorSplit, TensorSplit]:
    """Calibration and test images, 224x224 from the middle."""
    with np.load(file, allow_pickle=False) as content:
        images = torch.from_numpy(decode_packed(content["jpeg"], content["offsets"], str(file)))
        labels = torch.from_numpy(content["labels"].astype(np.int64))
    calibrates = torch.arange(len(images)) % 5 < 2  # they come in the order of their classes
    images = images[:, :, 16:240, 16:240]
    return tuple(TensorSplit(images[part], labels[part], MEAN, STD) for part in (calibrates, ~calibrates))


@torch.no_grad()
def classes(model: torch.nn.Module, split: TensorSplit) -> Tensor:
    return torch.cat([model(images).argmax(1) for images, _ in split.batches(BATCH)])


def new_report(calibration: int, test: TensorSplit, dense: Tensor) -> dict[str, Any]:
    return {
        "question": "top-1, and agreement with the dense network, right after the cut",
        "model": "torchvision:mobilenet_v2",
        "calibration_images": calibration,
        "test_images": len(test),
        "environment": {"torch": torch.__version__, "python": platform.python_version(), "threads": 1},
        "dense": accuracy(dense, test.labels),
        "rows": [],
    }


def row_of(
    model: torch.nn.Module, splits: tuple[TensorSplit, TensorSplit], dense: Tensor, budget: str, arguments: dict
) -> dict[str, Any]:
    """Figures of one prune, and its CPU and wall seconds without the evaluation."""
    calibration, test = splits
    began, clock = time.process_time(), time.perf_counter()
    result = mp.prune(
        model,
        torch.zeros(2, 3, 224, 224),
        budget=f"macs={budget}",
        data=(calibration, calibration.take(8)),  # figures are taken below, both in one pass
        round_to=8,
        batch_size=BATCH,
        progress=False,
        **arguments,
    )
    cpu, wall = time.process_time() - began, time.perf_counter() - clock
    record, found = result.record, classes(result.model.eval(), test)
    return {
        "accuracy": accuracy(found, test.labels),
        "agreement": accuracy(found, dense),
        "macs": record["cost"]["after"]["macs"],
        "full_macs": record["cost"]["before"]["macs"],
        "params": record["cost"]["after"]["params"],
        "proof_error": record["proof"]["error"],
        "method": record["method"],
        "widths": [g["after"] for g in record["space"]["groups"]],
        "seconds": {name: round(s, 1) for name, s in record["seconds"].items()},
        "cpu_s": round(cpu, 1),
        "wall_s": round(wall, 1),
    }


def accuracy(found: Tensor, wanted: Tensor) -> float:
    return round(float((found == wanted).double().mean()), 4)


if __name__ == "__main__":
    main()
