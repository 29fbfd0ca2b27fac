"""What does the executor cost against eager? ResNet-18, batch 64, 32x32, one thread, models take turns.

python benchmarks/overhead/run.py --out benchmarks/overhead/resnet18.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import metaprune as mp
from metaprune.models import create
from metaprune.values import Plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = create("zoo:resnet18", num_classes=10).eval()
    x = torch.randn(64, 3, 32, 32)
    network = mp.trace(model, x)
    draw = np.random.default_rng(0)
    plan = Plan.of(
        network.space, [np.isin(np.arange(g.width), draw.permutation(g.width)[: g.width // 2]) for g in network.space]
    )
    module, graph = mp.cut(network, plan).model, mp.cut(network, plan, form="graph").model
    full = mp.cut(network, Plan(), form="graph").model
    alive = network.survivors(plan)
    sliced = {n: t.detach() for n, t in network.sliced(alive).items()}
    runs: dict[str, Callable[[], object]] = {
        "eager_full": lambda: model(x),
        "executor_full": lambda: network.run(x),
        "graph_form_full": lambda: full(x),
        "eager_module_form_50": lambda: module(x),
        "graph_form_50": lambda: graph(x),
        "executor_50_sliced_beforehand": lambda: network.run(x, plan=plan, tensors=sliced),
        "executor_50_sliced_each_forward": lambda: network.run(x, plan=plan),
    }
    found: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for turn in range(options.repeats + 2):
            for name, call in runs.items():
                start = time.perf_counter()
                call()
                if turn >= 2:
                    found[name].append(1e3 * (time.perf_counter() - start))
    median = {name: statistics.median(values) for name, values in found.items()}
    widths = np.stack([draw.integers(1, network.space.widths + 1) for _ in range(10_000)])
    start = time.perf_counter()
    network.cost(widths)
    report = {
        "question": "overhead of the executor against eager",
        "median_ms": {k: round(v, 2) for k, v in median.items()},
        "executor_over_eager": round(median["executor_full"] / median["eager_full"], 4),
        "graph_form_over_module_form": round(median["graph_form_50"] / median["eager_module_form_50"], 4),
        "cost_model_us_per_candidate": round(1e6 * (time.perf_counter() - start) / len(widths), 2),
        "environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": 1,
            "repeats": options.repeats,
        },
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
