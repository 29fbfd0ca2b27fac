"""Which method keeps the most accuracy at equal MACs and equal training? ResNet-20 on CIFAR-10, several seeds.

    python benchmarks/methods/run.py --folder ../shared/data --out benchmarks/methods/resnet20_cifar10.json

FOLDER holds cifar10_jpeg.npz and resnet20_cifar10.safetensors (see benchmarks/README.md). The images are JPEG copies:
the trained network is fine-tuned on them once, which is the dense baseline. Every method then prunes that same network
to the same budget and gets the same fine-tuning. Figures are test accuracies; nothing is chosen by them.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import metaprune as mp
from metaprune.core.rng import Rng
from metaprune.data import load_data
from metaprune.methods import create_method
from metaprune.models import create
from metaprune.protocol.method import PruneTask
from metaprune.train.evaluate import evaluate
from metaprune.train.loop import train

CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "uniform": ("uniform", {"fill": True}),
    "magnitude (L1)": ("magnitude", {"p": 1}),
    "magnitude (L2)": ("magnitude", {"p": 2}),
    "magnitude (L2), isomorphic": ("magnitude", {"p": 2, "scope": "isomorphic"}),
    "BN scale": ("bn_scale", {}),
    "Taylor by batch": ("taylor_batch", {}),
    "Taylor by batch, 5 steps": ("taylor_batch", {"steps": 5, "batches": 2}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", default="macs=50%")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--epochs", type=float, default=2)
    options = parser.parse_args()
    data = load_data(f"npz:{options.folder / 'cifar10_jpeg.npz'}", limit=options.images)
    data = replace(data, val=data.val.take(1000))  # only watched; nothing is chosen by it here
    few = data.test.take(2000)
    tune = mp.TrainConfig(epochs=options.epochs, lr=0.01, batch_size=128)
    model = create("zoo:resnet20", weights=str(options.folder / "resnet20_cifar10.safetensors"))
    as_loaded = evaluate(model, data.test)["accuracy"]
    train(model, data, mp.TrainConfig(epochs=3, lr=0.01), rng=Rng(0).child("dense"), progress=False)
    dense = evaluate(model, data.test)["accuracy"]
    print(f"dense: {as_loaded:.4f} as loaded, {dense:.4f} after fine-tuning", flush=True)
    network = mp.trace(model, torch.zeros(2, 3, 32, 32))
    full = network.cost()
    rows = []
    for label, (method, settings) in CONTENDERS.items():
        for seed in range(options.seeds):
            start = time.perf_counter()
            rng = Rng(seed)
            task, budget = PruneTask(network, data), mp.Budget.parse(options.budget)
            plan = create_method(method, settings).propose(task, budget, rng.child("method")).plan
            propose_s = time.perf_counter() - start
            pruned, cost = mp.cut(network, plan), network.cost(plan)
            before = evaluate(pruned.model, few)["accuracy"]
            train(pruned.model, data, tune, rng=rng.child("recover"), progress=False)
            rows.append(
                {
                    "label": label,
                    "method": method,
                    "options": settings,
                    "seed": seed,
                    "cut_accuracy": before,
                    "accuracy": evaluate(pruned.model, data.test)["accuracy"],
                    "macs": cost.macs,
                    "params": cost.params,
                    "proof_error": pruned.error,
                    "propose_s": round(propose_s, 3),
                    "total_s": round(time.perf_counter() - start, 1),
                }
            )
            print(label, seed, rows[-1]["cut_accuracy"], rows[-1]["accuracy"], rows[-1]["total_s"], flush=True)
    report = {
        "question": "accuracy at equal MACs and equal training",
        "model": "zoo:resnet20",
        "data": data.name,
        "budget": options.budget,
        "train_images": len(data.train),
        "test_images": len(data.test),
        "cut_accuracy_images": len(few),
        "epochs": options.epochs,
        "dense": {"as_loaded": as_loaded, "accuracy": dense, "macs": full.macs, "params": full.params},
        "environment": {"torch": torch.__version__, "python": platform.python_version()},
        "rows": rows,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
