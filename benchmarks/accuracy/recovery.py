"""What does a short recovery bring, and from where? ResNet-20 on 5,000 images of CIFAR-10, un-augmented, one pass each.

    python benchmarks/accuracy/recovery.py --folder ../shared/data --out benchmarks/accuracy/recovery.json

Every recovery starts from the same two cuts: that of `method="auto"`, and magnitude with BatchNorm moved. Its rate is
found by its own ramp (`lr="auto"`), whose seconds count. Rows as in run.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from run import L1, add_rows, parser_of, row_of

import metaprune as mp

IMAGES, VALIDATION = 5000, 500
KINDS = ("bn", "finetune", "distil", "reconstruct")
CUTS: dict[str, dict[str, Any]] = {"auto": {}, "magnitude (L1)": L1}
LABELS = {f"{cut}, {kind}": (cut, kind) for kind in KINDS for cut in CUTS}


def main() -> None:
    parser = parser_of(__doc__, seeds=3, budgets=["50%", "25%"])
    parser.add_argument("--epochs", type=float, default=1)
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
