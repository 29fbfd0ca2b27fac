"""What does a metanetwork's step cost? CPU seconds and peak memory of forward and backward, one process per case.

    OMP_NUM_THREADS=1 python benchmarks/metagraph/speed.py --out benchmarks/metagraph/speed.json

Sizes are the paper's for each network. Peak memory is the process's, weights and tracing included; "before" is the peak
up to the first pass.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

CASES = {
    "ResNet-20, 64 x 8": ("zoo:resnet20", 32, 64, 8, "gated", False),
    "ResNet-56, 64 x 8": ("zoo:resnet56", 32, 64, 8, "gated", False),
    "ResNet-56, 64 x 8, paper's form": ("zoo:resnet56", 32, 64, 8, "paper", False),
    "ResNet-56, 64 x 8, checkpointing": ("zoo:resnet56", 32, 64, 8, "gated", True),
    "VGG-19, 32 x 8, checkpointing": ("zoo:vgg19_bn", 32, 32, 8, "gated", True),
    "ResNet-50, 16 x 6, checkpointing": ("zoo:resnet50", 224, 16, 6, "gated", True),
    "ViT-B/16, 4 x 3, checkpointing": ("zoo:vit_b16", 224, 4, 3, "gated", True),
}


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def one(case: str) -> dict[str, float]:
    import torch

    import metaprune as mp
    from metaprune.methods.metagraph.build_graph import build_network_graph
    from metaprune.methods.metagraph.metanet import Graph, Metanet, MetanetConfig
    from metaprune.models import create

    torch.set_num_threads(1)
    spec, size, hidden, layers, form, checkpointing = CASES[case]
    network = mp.trace(create(spec), torch.zeros(1, 3, size, size))
    began = time.process_time()
    network_graph = build_network_graph(network)
    wired = time.process_time() - began
    graph = Graph(network_graph, network.tensors)
    metanet = Metanet(MetanetConfig(hidden=hidden, layers=layers, form=form, checkpointing=checkpointing)).train()
    before, found = peak_gb(), []
    for _ in range(1 if network_graph.edge_count > 1e6 else 3):
        metanet.zero_grad()
        began = time.process_time()
        loss = sum(v.square().sum() for v in metanet(graph, 0.5))
        forward = time.process_time()
        loss.backward()
        found.append((forward - began, time.process_time() - forward))
    forward, backward = (min(f) for f in zip(*found, strict=True))
    return {
        "nodes": network_graph.nodes,
        "edges": network_graph.edge_count,
        "wire_cpu_s": wired,
        "forward_cpu_s": forward,
        "backward_cpu_s": backward,
        "peak_gb": peak_gb(),
        "before_gb": before,
        "parameters": sum(p.numel() for p in metanet.parameters()),
    }


def data_models(together: int = 4, batch: int = 128, repeats: int = 4) -> dict[str, float]:
    """CPU seconds of forward and backward of one of several ResNet-20: one after another, and all at once by vmap."""
    import torch
    from torch import nn

    import metaprune as mp
    from metaprune.models import create

    torch.set_num_threads(1)
    network = mp.trace(create("zoo:resnet20"), torch.zeros(2, 3, 32, 32))
    trained = {n: t.detach() for n, t in network.tensors.items() if isinstance(t, nn.Parameter)}
    images, labels = torch.randn(together, batch, 3, 32, 32), torch.randint(0, 10, (together, batch))

    def loss(tensors: dict, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(network.at().run(x, tensors={**network.tensors, **tensors}), y)

    stacked = {n: torch.stack([t] * together) for n, t in trained.items()}
    at_once = torch.func.vmap(torch.func.grad(loss))

    def one_by_one() -> None:
        for x, y in zip(images, labels, strict=True):
            leaves = {n: t.clone().requires_grad_() for n, t in trained.items()}
            loss(leaves, x.to(memory_format=torch.channels_last), y).backward()

    found = {}
    for name, call in (("one_by_one", one_by_one), ("together", lambda: at_once(stacked, images, labels))):
        call()
        began = time.process_time()
        for _ in range(repeats):
            call()
        found[f"{name}_cpu_s"] = (time.process_time() - began) / repeats / together
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--data-models", action="store_true", help="measure training several networks at once too")
    parser.add_argument("--one", choices=list(CASES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one)))
        return
    report = json.loads(options.out.read_text()) if options.out.exists() else {"rows": {}}
    report["python"] = platform.python_version()
    for case in options.cases:
        command = [sys.executable, __file__, "--out", str(options.out), "--one", case]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(case, "failed:", done.stderr[-300:])
            continue
        report["rows"][case] = json.loads(done.stdout.splitlines()[-1])
        options.out.write_text(json.dumps(report, indent=1) + "\n")
        print(case, report["rows"][case], flush=True)
    if options.data_models:
        report["data_models"] = data_models()
        options.out.write_text(json.dumps(report, indent=1) + "\n")
        print(report["data_models"])


if __name__ == "__main__":
    main()
