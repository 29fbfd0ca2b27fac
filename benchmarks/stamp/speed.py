"""Is training the cut network as much cheaper as its MACs say? A step of both, in turns, for wide layers.

    OMP_NUM_THREADS=1 python benchmarks/stamp/speed.py --out benchmarks/stamp/speed.json

CPU seconds of one thread. Also what a step of STAMP's adaptation costs: the set is read once by the full network, then
forward and backward of the full network under soft gates.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32768")

import torch
from torch.nn import functional

import metaprune as mp
from metaprune.core.rng import Rng
from metaprune.data import Data, TensorSplit
from metaprune.methods.gating.training import Price, gradient_step, sgd
from metaprune.methods.stamp.episodes import Pool
from metaprune.methods.stamp.meta import fill_bank
from metaprune.methods.stamp.method import Stamp
from metaprune.models import create
from metaprune.protocol.method import PruneTask

NETWORKS = {"ResNet-18, 32 px": "zoo:resnet18_cifar", "VGG-19, 32 px": "zoo:vgg19_bn", "ResNet-8, 32 px": "zoo:resnet8"}
BATCH, BUDGETS = 16, ("50%", "25%", "10%")


def noise() -> Data:
    images = torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8)
    split = TensorSplit(images, torch.randint(0, 10, (256,)), (0.5,) * 3, (0.25,) * 3)
    return Data("noise", split, split, split, 10, (3, 32, 32), tuple("0123456789"), "noise")


def plain_step(model: torch.nn.Module) -> Any:
    x = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (BATCH,))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()

    def step() -> None:
        optimiser.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimiser.step()

    return step


def stamp_step(network: mp.Network, data: Data) -> Any:
    method, task = Stamp(), PruneTask(network, data)
    learner, pool = method._learner(task, Rng(0), network.tensors), Pool(data, "cpu")
    fill_bank(learner, [pool], method.meta, Rng(0))
    weights = learner.weights(network.tensors, 10)
    optimisers = (sgd(weights, 0.01, 0.1), torch.optim.Adam(learner.generator.parameters(), lr=3e-3))
    sample = pool.draw(pool.classes, BATCH, Rng(0))
    return lambda: gradient_step(learner, weights, optimisers, sample, Rng(0), Price(3.0, 0.25))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"batch": BATCH, "torch": torch.__version__, "python": platform.python_version()}
    for name, spec in NETWORKS.items():
        model, data = create(spec, num_classes=10, in_channels=3), noise()
        network = mp.trace(model, torch.zeros(2, 3, 32, 32))
        steps = {"full": plain_step(model), "STAMP's adaptation": stamp_step(network, data)}
        macs = {"full": 1.0}
        for budget in BUDGETS:
            found = mp.prune(
                model,
                torch.zeros(2, 3, 32, 32),
                budget={"macs": budget},
                method="uniform",
                method_options={"fill": True},
                verify=False,
            )
            cost = found.record["cost"]
            macs[budget], steps[budget] = cost["after"]["macs"] / cost["before"]["macs"], plain_step(found.model)
        times: dict[str, list[float]] = {key: [] for key in steps}
        for turn in range(8):
            for key, step in steps.items():
                start = time.process_time()
                step()
                if turn >= 2:  # the first two compile
                    times[key].append(1e3 * (time.process_time() - start))
        ms = {key: statistics.median(values) for key, values in times.items()}
        row = {
            key: {"ms": value, "time_ratio": value / ms["full"], "macs_ratio": macs.get(key)}
            for key, value in ms.items()
        }
        report.setdefault("networks", {})[name] = row
        print(name, {k: f"{r['ms']:.0f} ms, {r['time_ratio']:.2f}" for k, r in row.items()}, flush=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
