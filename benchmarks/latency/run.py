"""Latency tables of three small networks on this machine: their error against end-to-end measurement.

    OMP_NUM_THREADS=1 python benchmarks/latency/run.py --out benchmarks/latency/results.json

One JSON entry per network: the table's `info` (device, versions, protocol, error with all pairs) and the time of a
prediction. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metaprune.core.files import write_json
from metaprune.core.rng import Rng
from metaprune.latency import LatencyTable, build_table
from metaprune.models import create
from metaprune.network import Network
from metaprune.tracing import trace

NETWORKS: dict[str, dict[str, Any]] = {
    "resnet20": {"num_classes": 10, "in_channels": 3},
    "mobilenet_v1": {"num_classes": 10, "stem_stride": 1},
    "vit_micro": {"num_classes": 10},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--runtime", default="eager")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--points", type=int, default=5)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"))
    parser.add_argument("--structures", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/latency/results.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(given.out.read_text()) if given.out.exists() else {}
    for name in given.networks:
        table, network = measured(name, given)
        key = f"{name} {given.runtime} {given.device} batch {given.batch}"
        results[key] = {**table.info, "microseconds_per_candidate": prediction_time(table, network)}
        write_json(given.out, results)
        error = table.info["error"]
        print(f"{key}: median {error['median_relative_error']:.3f}, rank correlation {error['spearman']:.3f}")


def measured(name: str, given: argparse.Namespace) -> tuple[LatencyTable, Network]:
    with Rng(0).child("model").torch_global():
        model = create(f"zoo:{name}", **NETWORKS[name]).eval().to(given.device)
    shape = (NETWORKS[name].get("in_channels", 3), 32, 32) if name == "mobilenet_v1" else tuple(model.input_shape)
    draw = Rng(0).child("example").torch()
    network = trace(model, torch.randn(2, *shape, generator=draw).to(given.device))
    args = (torch.randn(given.batch, *shape, generator=draw).to(given.device),)
    table = build_table(
        network,
        args,
        {},
        runtime=given.runtime,
        points=given.points,
        samples=given.samples,
        repeats=given.repeats,
        structures=given.structures,
        clock=given.clock,
        rng=Rng(0),
        progress=lambda text: print(f"{name}: {text}", flush=True),
    )
    return table, network


def prediction_time(table: LatencyTable, network: Network, candidates: int = 10_000) -> float:
    """Microseconds per candidate, of many at once."""
    widths = Rng(0).numpy().integers(1, network.space.widths + 1, (candidates, len(network.space)))
    table.predict_ms(widths)
    start = time.perf_counter()
    table.predict_ms(np.asarray(widths))
    return 1e6 * (time.perf_counter() - start) / candidates


if __name__ == "__main__":
    main()
