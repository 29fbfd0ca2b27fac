"""How good is a language model right after the cut? SmolLM2-135M on the Brown corpus, neurons of its MLPs alone.

    python benchmarks/accuracy/language.py --out benchmarks/accuracy/smollm2.json

Get the data first: `metaprune data get brown smollm2-135m`. Every layer keeps the same share, so that only the choice
of neurons differs (but for sensitivity); nothing is trained. One seed, which chooses the calibration sequences. Each
row is written as it comes, and the same command continues.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

import metaprune as mp
from metaprune.calibration.batches import calibration_batches
from metaprune.calibration.compensate import compensate
from metaprune.core.imports import allow_torchvision_import
from metaprune.models import create
from metaprune.protocol.method import PruneTask
from metaprune.protocol.registry import create_method
from metaprune.train.evaluate import evaluate
from metaprune_datasets.text import corpus

LENGTH, TRAIN, TEST = 64, 96, 16  # tokens of a sequence, sequences
UNIFORM = {"allocate": "uniform"}
CALIBRATED = {**UNIFORM, "samples": TRAIN}
LABELS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {"widths": "uniform"}),
    "magnitude (L2)": ("magnitude", UNIFORM),
    "activation (L2)": ("activation", CALIBRATED),
    "activation (L1, Wanda)": ("activation", {**CALIBRATED, "p": 1}),
    "sensitivity (activation)": ("activation", {"allocate": "sensitivity", "samples": TRAIN}),
    "variance": ("variance", CALIBRATED),
    "obs": ("obs", CALIBRATED),
    "taylor (reads labels)": ("taylor", {**UNIFORM, "batches": TRAIN // 8}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budgets", nargs="+", default=["95%", "90%"], help="shares of the parameters")
    parser.add_argument("--compensate", nargs="+", default=["none", "least-squares"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    allow_torchvision_import()
    train, _, test = corpus("brown", length=LENGTH)
    data = mp.as_data((train.take(TRAIN), test.take(TEST)), objective="next_token")
    network = mp.trace(create("builtin:smollm2-135m").eval(), (), {"input_ids": test.take(2).ids})
    task = PruneTask(network, data, mp.Constraints(only=("*mlp*:hidden",)), batch_size=8)
    report = json.loads(options.out.read_text()) if options.out.exists() else new_report(task)
    done = {(row["label"], row["budget"], row["compensate"]) for row in report["rows"]}
    for kind in options.compensate:
        for budget in options.budgets:
            for label in LABELS:
                if (label, budget, kind) not in done:
                    report["rows"].append({"label": label, "budget": budget, **row_of(task, label, budget, kind)})
                    print(report["rows"][-1], flush=True)
                    options.out.write_text(json.dumps(report, indent=1) + "\n")


def new_report(task: PruneTask) -> dict[str, Any]:
    return {
        "question": "perplexity right after the cut, without training",
        "calibration_tokens": TRAIN * LENGTH,
        "test_tokens": TEST * LENGTH,
        "environment": {"torch": torch.__version__, "python": platform.python_version(), "threads": 1},
        "dense": round(perplexity(task, task.network.model), 2),
        "rows": [],
    }


def row_of(task: PruneTask, label: str, budget: str, kind: Any) -> dict[str, Any]:
    """Perplexity of one cut, and CPU seconds of the scores and of the compensation."""
    network, data = task.network, task.require_data(label)
    name, options = LABELS[label]
    began = time.process_time()
    plan = create_method(name, options).propose(task, mp.Budget(params=budget), mp.Rng(0)).plan
    proposed = time.process_time()
    weights = {}
    if kind != "none":
        batches = calibration_batches(network, data.train, TRAIN, mp.Rng(0), batch_size=8)
        weights = dict(compensate(network, plan, batches, kind=kind, rng=mp.Rng(0)).weights)
    solved = time.process_time()
    model = mp.cut(network, plan, weights=weights, form="graph", verify=False).model
    return {
        "compensate": kind,
        "perplexity": round(perplexity(task, model), 2),
        "params_share": round(network.cost(plan).params / network.cost().params, 4),
        "cpu_s": {"propose": round(proposed - began, 1), "compensate": round(solved - proposed, 1)},
    }


def perplexity(task: PruneTask, model: torch.nn.Module) -> float:
    data = task.require_data("evaluation")
    return evaluate(model, data.val, objective=data.require_objective(), batch_size=8)["perplexity"]


if __name__ == "__main__":
    main()
