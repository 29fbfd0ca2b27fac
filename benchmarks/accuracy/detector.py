"""How near are a cut face detector's outputs to the dense one's, beside Torch-Pruning at the same MACs? No labels.

    python benchmarks/accuracy/detector.py --out benchmarks/accuracy/centerface.json

CenterFace (`metaprune data get centerface emoji`) on the mosaics of examples/jobs/faces.py: 256 calibrate, 128
others judge. The network came as ONNX and has no BatchNorm. Each row is written as it comes, and the same command
continues.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peers import EVEN, MAGNITUDE, macs, torch_pruned
from run import L1, LEAST_SQUARES
from study import AUTO, write
from torch import Tensor, nn

import metaprune as mp
from metaprune.models import create
from networks import Subject

sys.path.append(str(Path(__file__).parents[2] / "examples" / "jobs"))
from faces import data as mosaics

HEADS = ("Conv_56", "Conv_57", "Conv_58", "Conv_59")
SUBJECT = Subject("builtin:centerface", "", "", (3, 64, 64), heads=HEADS)
OURS: dict[str, dict[str, Any]] = {
    "magnitude (L1)": L1,
    "magnitude (L1), least squares": {**L1, **LEAST_SQUARES},
    AUTO: {},
}
PEERS = {label.removesuffix(", BatchNorm"): label for label in (MAGNITUDE, EVEN)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budgets", nargs="+", default=["75%", "50%", "25%"], help="shares of the MACs")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    done = {(row["label"], row["budget"], row["seed"]) for row in rows}
    train, val, test = mosaics()
    dense, images = create(SUBJECT.model).eval(), torch.stack([test[i] for i in range(len(test))])
    for seed, budget, label in itertools.product(range(options.seeds), options.budgets, [*OURS, *PEERS]):
        if (label, budget, seed) in done:
            continue
        share, began = float(budget.rstrip("%")) / 100, time.process_time()
        if label in PEERS:
            cut = torch_pruned(
                SUBJECT, dense, mp.as_data((train, val), objective="match_outputs"), PEERS[label], share, seed
            )
        else:
            cut = mp.prune(
                dense, SUBJECT.example, budget=f"macs={budget}", data=(train, val), objective="match_outputs",
                batch_size=32, seed=seed, progress=False, **OURS[label],
            ).model  # fmt: skip
        spent = round(time.process_time() - began, 1)
        shares = {"macs_share": round(macs(cut, SUBJECT) / macs(dense, SUBJECT), 4), "cpu_s": spent}
        rows.append(
            {"label": label, "budget": budget, "seed": seed, "output_error": output_error(dense, cut, images), **shares}
        )
        print(rows[-1], flush=True)
        write(options.out, rows, "errors of a detector's outputs, beside Torch-Pruning at the same MACs")


@torch.no_grad()
def output_error(dense: nn.Module, cut: nn.Module, images: Tensor) -> float:
    """Relative error, mean over the four outputs."""
    wanted, got = ([torch.cat(out) for out in zip(*map(m.eval(), images.split(32)), strict=True)] for m in (dense, cut))
    return round(sum(float((a - b).norm() / b.norm()) for a, b in zip(got, wanted, strict=True)) / len(wanted), 4)


if __name__ == "__main__":
    main()
