"""What PruningNet costs: a training step against a plain one of the same structures, scoring, sampling, memory.

    OMP_NUM_THREADS=1 python benchmarks/pruningnet/speed.py --out benchmarks/pruningnet/speed.json

CPU seconds of one thread, so that other work on the machine matters less. Steps are of eight random structures in turn.
`seen`: their shapes were met before. `new`: every step has widths that this process never saw, as in training with
the 31 ratios of the paper; oneDNN then compiles each convolution anew, which no code of ours can avoid.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32768")

import numpy as np
import torch
from torch import nn

import metaprune as mp
from metaprune.core.rng import Rng
from metaprune.methods.pruningnet.banks import GeneratedBank
from metaprune.methods.pruningnet.method import PruningNet
from metaprune.methods.pruningnet.supernet import Scorer, SupernetLoss
from metaprune.models import create
from metaprune.objective.classification import Classification
from metaprune.protocol.method import PruneTask
from metaprune.search.encoding import BudgetSampler, WidthEncoding

NETWORKS = {
    "ResNet-8, 28 px, batch 128": ("zoo:resnet8", {}, (1, 28, 28), 128),
    "MobileNetV1 x0.25, 28 px, batch 128": (
        "zoo:mobilenet_v1",
        {"width": 0.25, "stem_stride": 1, "in_channels": 1},
        (1, 28, 28),
        128,
    ),
    "ResNet-20, 32 px, batch 128": ("zoo:resnet20", {}, (3, 32, 32), 128),
}


def cpu_ms(calls: Sequence[Callable[[], Any]]) -> float:
    """Median CPU milliseconds of the calls."""
    found = []
    for call in calls:
        start = time.process_time()
        call()
        found.append(1e3 * (time.process_time() - start))
    return statistics.median(found)


def steps(network: mp.Network, shape: tuple[int, ...], batch: int) -> dict[str, float]:
    """Milliseconds of one training step, plain and of the PruningNet."""
    # the supernet lays images out channels-last, so the plain step gets them so
    x, y = torch.randn(batch, *shape).to(memory_format=torch.channels_last), torch.randint(0, 10, (batch,))
    loss = SupernetLoss(Classification(), 0.1, False)
    found: dict[str, float] = {}
    drawn = WidthEncoding(network.space).random(40, np.random.default_rng(0))
    eight, fresh = drawn[:8], drawn[8:24]
    for name in ("generated", "shared"):
        method = PruningNet(weights=name)
        codec = method._codec(PruneTask(network), Rng(0))
        supernet = method._supernet(PruneTask(network), codec).train()
        optimizer = torch.optim.SGD(supernet.parameters(), lr=0.01, momentum=0.9, weight_decay=4e-5)

        def step(genome: np.ndarray, supernet: Any = supernet, optimizer: Any = optimizer) -> None:
            supernet._draw = lambda: genome[None]
            optimizer.zero_grad()
            loss(supernet(x), x, y).backward()
            optimizer.step()

        def weights(genome: np.ndarray, supernet: Any = supernet, codec: Any = codec) -> None:
            made, _ = supernet.weights(codec.widths(genome))
            for tensor in made:
                made[tensor]

        for _ in range(2):
            for genome in eight:
                step(genome)
        found[f"{name}, seen"] = cpu_ms([lambda g=g: step(g) for g in (*eight, *eight)])
        if name == "generated":  # the other back-end would find these shapes compiled
            found[f"{name}, new"] = cpu_ms([lambda g=g: step(g) for g in fresh])
        found[f"{name}, making weights"] = cpu_ms([lambda g=g: weights(g) for g in eight])
    found["plain, seen"] = statistics.median([plain(supernet, codec, genome, x, y, loss) for genome in eight])
    return found


def plain(
    supernet: Any, codec: WidthEncoding, genome: np.ndarray, x: torch.Tensor, y: torch.Tensor, loss: Any
) -> float:
    """The same structure as a network of its own."""
    model = mp.cut(supernet.network, codec.plan(codec.widths(genome)), verify=False, form="graph").model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=4e-5)

    def step() -> None:
        optimizer.zero_grad()
        loss((model(x),), x, y).backward()
        optimizer.step()

    step()
    return cpu_ms([step] * 3)


def scoring(network: mp.Network, shape: tuple[int, ...]) -> dict[str, float]:
    """Candidates per CPU second at half of the MACs, 1000 calibration and 1000 validation images."""
    method = PruningNet(weights="generated")
    codec = method._codec(PruneTask(network), Rng(0))
    supernet = method._supernet(PruneTask(network), codec)
    batches = [(torch.randn(250, *shape), torch.randint(0, 10, (250,))) for _ in range(4)]
    scorer = Scorer(supernet, batches, batches, Classification())
    sampler = BudgetSampler(codec, network.cost_model(), {"macs": 0.5 * network.cost().macs})
    rows = codec.widths(sampler.sample(12, np.random.default_rng(0)))
    return {"candidates_per_s": 1e3 / cpu_ms([lambda w=w: scorer(w) for w in rows])}


def batching(network: mp.Network, shape: tuple[int, ...], together: int = 4) -> dict[str, float]:
    """CPU ms a candidate, forward pass of 250 images: one after another at their widths, or all at once by vmap.

    At once they all have the full network's widths, what a candidate lacks being zero. Half of the MACs; weights as
    PruningNet makes them; the statistics are not re-estimated here, which both would do by more of the same passes.
    """
    method = PruningNet(weights="generated")
    codec = method._codec(PruneTask(network), Rng(0))
    supernet = method._supernet(PruneTask(network), codec)
    sampler = BudgetSampler(codec, network.cost_model(), {"macs": 0.5 * network.cost().macs})
    rows = codec.widths(sampler.sample(together, np.random.default_rng(0)))
    x = torch.randn(250, *shape).to(memory_format=torch.channels_last)
    with torch.no_grad():
        padded = [dict(supernet.weights(w, full_size=True)[0]) for w in rows]
        stacked = {n: torch.stack([p[n] for p in padded]) for n in padded[0]}
        at_once = torch.func.vmap(lambda weights: network.at().run(x.contiguous(), tensors=weights))

        def one_by_one() -> None:
            for widths in rows:
                supernet.run(widths, (x,), {})

        one_by_one(), at_once(stacked)
        return {
            "one_by_one_ms": cpu_ms([one_by_one] * 5) / together,
            "together_ms": cpu_ms([lambda: at_once(stacked)] * 5) / together,
        }


def sampling(network: mp.Network) -> dict[str, float]:
    codec, found = WidthEncoding(network.space), {}
    for share in (0.75, 0.25, 0.05):
        sampler = BudgetSampler(codec, network.cost_model(), {"macs": share * network.cost().macs})
        draw = np.random.default_rng(0)
        found[f"{share:.0%}"] = 1e4 / (cpu_ms([lambda s=sampler, d=draw: s.sample(10_000, d)] * 3) / 1e3)
    return found


def memory() -> dict[str, int]:
    """Parameters of MobileNetV1's generators (224 px), whole and with a factorised second layer."""
    network = mp.trace(create("zoo:mobilenet_v1", num_classes=1000), torch.zeros(2, 3, 224, 224))
    codec, found = WidthEncoding(network.space, mp.Constraints(ignore=("=blocks.12.pointwise",))), {}
    for rank in (None, 16, 8, 4):
        bank = GeneratedBank(
            network,
            codec,
            hidden=32,
            hidden_of={},
            rank=rank,
            blocks=("blocks.*",),
            from_network=False,
            norm_affine=False,
            device="meta",
        )
        found[str(rank)] = sum(p.numel() for p in bank.generators.parameters())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version(), "threads": 1}
    for name, (spec, arguments, shape, batch) in NETWORKS.items():
        model: nn.Module = create(spec, num_classes=10, **arguments)
        network = mp.trace(model, torch.zeros(2, *shape))
        row = {
            "step_ms": steps(network, shape, batch),
            **scoring(network, shape),
            "batching": batching(network, shape),
            "samples_per_s": sampling(network),
        }
        report.setdefault("networks", {})[name] = row
        print(name, json.dumps(row), flush=True)
    report["mobilenet_v1_generator_parameters_by_rank"] = memory()
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
