"""What does a short recovery bring, and from where? ResNet-20 on 5,000 images of CIFAR-10, un-augmented, one pass each.

    python benchmarks/accuracy/recovery.py --folder ../shared/data --out benchmarks/accuracy/recovery.json

Every recovery starts from the same two cuts: that of `method="auto"`, and magnitude with BatchNorm moved. Its rate is
found by its own ramp (`lr="auto"`), whose seconds count. Rows as in run.py.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from run import L1, add_rows, row_of

import metaprune as mp

IMAGES, VALIDATION = 5000, 500
KINDS = ("bn", "finetune", "distil", "reconstruct")
CUTS: dict[str, dict[str, Any]] = {"auto": {}, "magnitude (L1)": L1}
LABELS = {f"{cut}, {kind}": (cut, kind) for kind in KINDS for cut in CUTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budgets", nargs="+", default=["50%", "25%"], help="shares of the MACs")
    parser.add_argument("--images", type=int, default=2000, help="test images")
    parser.add_argument("--epochs", type=float, default=1)
    parser.set_defaults(network="resnet20")
    options = parser.parse_args()

    def row(model: torch.nn.Module, data: mp.Data, budget: str, seed: int, label: str) -> dict[str, Any]:
        cut, kind = LABELS[label]
        few = replace(data, train=data.train.take(IMAGES), val=data.val.take(VALIDATION))
        train = mp.TrainConfig(epochs=options.epochs, augment=False)
        recovery = mp.RecoverConfig(kind=kind, train=train)
        return row_of(model, few, budget, seed, {**CUTS[cut], "recover": recovery})

    add_rows(options, list(LABELS), row)


if __name__ == "__main__":
    main()
