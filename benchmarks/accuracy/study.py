"""How good is a network right after the cut, and after one short pass, beside Torch-Pruning's at the same MACs?

    python benchmarks/accuracy/study.py --folder FOLDER --out benchmarks/accuracy/study.json [--networks vgg19 vit]

FOLDER is that of networks.py. Nothing is trained and no label read before the first figure, but where a row says so.
The pass is fine-tuning on 5,000 training images, un-augmented, at a rate found by its own ramp, the same for all.
Seeds choose the calibration samples. Each row is written as it comes, and the same command continues.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peers import IMPORTANCES, macs, torch_pruned
from run import BN, L1, LEAST_SQUARES
from torch import Tensor, nn

import metaprune as mp
from metaprune.recover.run import recover
from networks import SUBJECTS, Subject

IMAGES, VALIDATION, PHOTOGRAPHS = 5000, 500, 25
AUTO, INNER = "auto", "auto, inner channels alone"  # as Torch-Pruning is given them in ResNets
OURS: dict[str, dict[str, Any]] = {
    "magnitude (L1), BatchNorm": {**L1, **BN},
    "magnitude (L1), least squares": {**L1, **LEAST_SQUARES},
    AUTO: {},
    INNER: {"only": ("*:hidden",)},
}
LABELS = [*OURS, *IMPORTANCES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=list(SUBJECTS), choices=SUBJECTS)
    parser.add_argument("--labels", nargs="+", default=LABELS, choices=LABELS)
    parser.add_argument("--budgets", nargs="+", default=["75%", "50%", "25%"], help="shares of the MACs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--recover", action="store_true", help="and what one short pass of training brings")
    parser.add_argument("--images", type=int, default=2000, help="test images, where there are more")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    done = {(row["network"], row["label"], row["budget"], row["seed"], row["recovered"] is not None) for row in rows}
    for name in options.networks:
        row_of = Row(SUBJECTS[name], options.folder, options.images, options.recover)
        for seed, budget, label in itertools.product(options.seeds, options.budgets, options.labels):
            if label == INNER and "resnet" not in name:
                continue
            if (name, label, budget, seed, options.recover) not in done:
                rows.append({"network": name, "label": label, "budget": budget, "seed": seed})
                rows[-1] |= row_of(label, float(budget.rstrip("%")) / 100, seed)
                print(rows[-1], flush=True)
                write(options.out, rows, "accuracy right after the cut, beside Torch-Pruning at the same MACs")


class Row:
    """Measures cuts of one network."""

    def __init__(self, subject: Subject, folder: Path, images: int, recovers: bool):
        self.subject, self.recovers = subject, recovers
        self.model, self.data = subject.network(folder), subject.samples(folder, images)
        self.full_macs, self.dense = macs(self.model, subject), self.classes(self.model)

    def __call__(self, label: str, share: float, seed: int) -> dict[str, Any]:
        began = time.process_time()
        cut = self.cut(label, share, seed)
        cpu_s = time.process_time() - began
        figures = self.figures(cut)
        return {
            **figures,
            "dense": self.accuracy(self.dense),
            "macs_share": round(self.macs_of(cut) / self.full_macs, 4),
            "params": sum(p.numel() for p in cut.parameters()),
            "cpu_s": round(cpu_s, 1),
            "recovered": self.recovered(cut, seed) if self.recovers else None,
        }

    def cut(self, label: str, share: float, seed: int) -> nn.Module:
        if label not in OURS:
            return torch_pruned(self.subject, self.model, self.data, label, share, seed)
        data = replace(self.data, val=self.data.val.take(8), test=None)  # figures are taken below, in one pass
        arguments = {**self.subject.arguments, **OURS[label], "seed": seed, "progress": False}
        return mp.prune(self.model, self.subject.example, budget=f"macs={share:.0%}", data=data, **arguments).model

    def recovered(self, cut: nn.Module, seed: int) -> float:
        few = replace(self.data, train=self.data.train.take(IMAGES), val=self.data.val.take(VALIDATION))
        config = mp.RecoverConfig(kind="finetune", train=mp.TrainConfig(epochs=1, augment=False))
        recover(cut, self.model, few, config, rng=mp.Rng(seed), progress=False)
        return self.figures(cut)["accuracy"]

    def macs_of(self, model: nn.Module) -> int:
        return macs(model, self.subject)

    def figures(self, model: nn.Module) -> dict[str, float]:
        classes = self.classes(model)
        return {"accuracy": self.accuracy(classes), "agreement": share_of(classes == self.dense)}

    def accuracy(self, classes: Tensor) -> float:
        return share_of(classes == torch.cat([labels for _, labels in self.data.test.batches(PHOTOGRAPHS)]))

    @torch.no_grad()
    def classes(self, model: nn.Module) -> Tensor:
        model.eval()
        return torch.cat([model(images).argmax(1) for images, _ in self.data.test.batches(PHOTOGRAPHS)])


def share_of(right: Tensor) -> float:
    return round(float(right.double().mean()), 4)


def write(out: Path, rows: list[dict[str, Any]], question: str) -> None:
    report = {
        "question": question,
        "environment": {"torch": torch.__version__, "python": platform.python_version(), "threads": 1},
        "rows": rows,
    }
    out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
