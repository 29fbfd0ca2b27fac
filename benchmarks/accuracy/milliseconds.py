"""Accuracy right after a cut to 70% of measured milliseconds, ours by a latency table, Torch-Pruning's by trial.

    OMP_NUM_THREADS=1 python benchmarks/accuracy/milliseconds.py --folder FOLDER --out benchmarks/accuracy/\
milliseconds.json

ResNet-20 in batches of 32, eager PyTorch, processor time of one thread. Torch-Pruning has no budget in milliseconds:
its share of the MACs is halved in until the network that it makes meets the bound. Every network is then timed in turns
with the dense one. Each row is written as it comes, and the same command continues.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peers import EVEN, MAGNITUDE, TAYLOR
from study import AUTO, OURS, Row, write
from torch import Tensor, nn

import metaprune as mp
from metaprune.latency import build_table
from networks import SUBJECTS

BATCH, SHARE, TURNS, HALVINGS = 32, 0.7, 25, 6
UNIFORM = "uniform, least squares"
LABELS = {
    **{label: OURS[label] for label in ("magnitude (L1), BatchNorm", "magnitude (L1), least squares", AUTO)},
    UNIFORM: {"method": "uniform", "method_options": {"fill": True}, "compensate": "least-squares"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000, help="test images")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    done = {(row["label"], row["seed"]) for row in rows}
    study = Row(SUBJECTS["resnet20"], options.folder, options.images, recovers=False)
    images = torch.randn(BATCH, *study.subject.image, generator=mp.Rng(0).child("images").torch())
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table"
        build_table(mp.trace(study.model, study.subject.example), (images,), clock="cpu").save(table)
        for seed in options.seeds:
            for label in (*LABELS, MAGNITUDE, EVEN, TAYLOR):
                if (label, seed) in done:
                    continue
                began = time.process_time()
                cut = ours(study, label, seed, table) if label in LABELS else peers(study, label, seed, images)
                row = {"label": label, "seed": seed, "cpu_s": round(time.process_time() - began, 1)}
                row |= {"ms_share": time_share(study.model, cut, images), **study.figures(cut)}
                row |= {"macs_share": round(study.macs_of(cut) / study.full_macs, 4)}
                rows.append({**row, "dense": study.accuracy(study.dense)})
                print(rows[-1], flush=True)
                write(options.out, rows, f"accuracy right after a cut to {SHARE:.0%} of measured milliseconds")


def ours(study: Row, label: str, seed: int, table: Path) -> nn.Module:
    data = replace(study.data, val=study.data.val.take(8), test=None)
    arguments: dict[str, Any] = {**LABELS[label], "seed": seed, "progress": False, "latency_table": table}
    return mp.prune(
        study.model, study.subject.example, budget={"latency_ms": f"{SHARE:.0%}"}, data=data, **arguments
    ).model


def peers(study: Row, label: str, seed: int, images: Tensor) -> nn.Module:
    """The largest network that it makes within the bound, of those tried."""
    low, high, best = 0.0, 1.0, None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried = study.cut(label, middle, seed)
        if time_share(study.model, tried, images) <= SHARE:
            low, best = middle, tried
        else:
            high = middle
    assert best is not None
    return best


@torch.no_grad()
def time_share(dense: nn.Module, cut: nn.Module, images: Tensor) -> float:
    """Processor time of the cut network as a share of the dense one's: the median over turns."""
    ratios = []
    for turn in range(TURNS + 2):
        spent = [_spent(model.eval(), images) for model in ((dense, cut) if turn % 2 else (cut, dense))]
        ratios.append(spent[1] / spent[0] if turn % 2 else spent[0] / spent[1])
    return round(statistics.median(ratios[2:]), 3)


def _spent(model: nn.Module, images: Tensor) -> float:
    began = time.process_time()
    model(images)
    return time.process_time() - began


if __name__ == "__main__":
    main()
