"""Whole branches or narrower ones? ResNet-20 on CIFAR-10 and SmolLM2-135M on the Brown corpus.

    python benchmarks/accuracy/depth.py --folder ../shared/data --out benchmarks/accuracy/depth.json

Data as for run.py and language.py. Nothing is trained. Weights behind the cut are solved anew (least squares) in
ResNet-20, and left as they are in SmolLM2. One seed. Each row is written as it comes, and the same command continues.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from language import LENGTH, TEST, TRAIN, perplexity

import metaprune as mp
from metaprune.core.imports import allow_torchvision_import
from metaprune.models import create
from metaprune.protocol.method import PruneTask
from metaprune.protocol.registry import create_method
from metaprune_datasets.text import corpus

IMAGES = 2000
COSINE, LOSS = {"criterion": "cosine"}, {"criterion": "loss"}
AUTO = {"allocate": "sensitivity"}
# label -> method, options, least channels
RESNET: dict[str, tuple[str, dict[str, Any], int]] = {
    "width: sensitivity (activation)": ("activation", AUTO, 1),
    "depth: cosine": ("depth", COSINE, 1),
    "depth: loss": ("depth", LOSS, 1),
    "both: sensitivity (activation), min_keep=0": ("activation", AUTO, 0),
}
NEURONS = ("*mlp*:hidden",)
SMOLLM2: dict[str, tuple[str, dict[str, Any]]] = {
    "width: activation, neurons of MLPs": ("activation", {"allocate": "uniform", "samples": TRAIN}),
    "depth: cosine": ("depth", {**COSINE, "samples": 32}),
    "depth: loss, measured once": ("depth", {**LOSS, "samples": 8, "batch_size": 8, "iterative": False}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budgets", nargs="+", default=["95%", "90%"], help="shares of the parameters")
    parser.add_argument("--networks", nargs="+", default=["resnet20", "smollm2"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    allow_torchvision_import()
    report = json.loads(options.out.read_text()) if options.out.exists() else new_report()
    made = {"resnet20": resnet_rows, "smollm2": language_rows}
    for network in options.networks:
        done = {(r["label"], r["budget"]) for r in report["rows"] if r["network"] == network}
        for row in made[network](options, done):
            report["rows"].append({"network": network, **row})
            print(report["rows"][-1], flush=True)
            options.out.write_text(json.dumps(report, indent=1) + "\n")


def new_report() -> dict[str, Any]:
    return {
        "question": "accuracy and perplexity right after the cut, branches dropped or narrowed",
        "test_images": IMAGES,
        "test_tokens": TEST * LENGTH,
        "environment": {"torch": torch.__version__, "python": platform.python_version(), "threads": 1},
        "rows": [],
    }


def resnet_rows(options: argparse.Namespace, done: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    data = mp.load_data(f"npz:{options.folder / 'cifar10_jpeg.npz'}")
    data = replace(data, test=data.test.take(IMAGES))
    model = create("zoo:resnet20", weights=str(options.folder / "resnet20_cifar10.safetensors")).eval()
    for budget in options.budgets:
        for label, (name, method_options, least) in RESNET.items():
            if (label, budget) in done:
                continue
            began = time.process_time()
            result = mp.prune(
                model,
                torch.zeros(2, 3, 32, 32),
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
                "figure": (quality["recovered"] or quality["cut"])["accuracy"],
                "dense": quality["dense"]["accuracy"],
                **shares(result.pruned),
                "cpu_s": round(time.process_time() - began, 1),
            }


def language_rows(options: argparse.Namespace, done: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    train, _, test = corpus("brown", length=LENGTH)
    data = mp.as_data((train.take(TRAIN), test.take(TEST)), objective="next_token")
    network = mp.trace(create("builtin:smollm2-135m").eval(), (), {"input_ids": test.take(2).ids})
    task = PruneTask(network, data, batch_size=8)
    dense = perplexity(task, network.model)
    for label, (name, method_options) in SMOLLM2.items():
        for budget in options.budgets:
            if (label, budget) in done:
                continue
            began = time.process_time()
            here = task if name == "depth" else replace(task, constraints=mp.Constraints(only=NEURONS))
            plan = create_method(name, method_options).propose(here, mp.Budget(params=budget), mp.Rng(0)).plan
            spent = time.process_time() - began
            pruned = mp.cut(network, plan, form="graph")
            yield {
                "label": label,
                "budget": budget,
                "figure": round(perplexity(task, pruned.model), 2),
                "dense": round(dense, 2),
                **shares(pruned),
                "cpu_s": round(spent, 1),
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
