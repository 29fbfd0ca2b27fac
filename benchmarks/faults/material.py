"""What the attempts are made on: a small network, its data, and what says whether a result is right."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import metaprune as mp
from metaprune.core.imports import allow_torchvision_import

allow_torchvision_import()
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT / "benchmarks" / "coverage")]

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
ARRAYS = {"images": np.arange(60 * 64, dtype=np.uint8).reshape(60, 8, 8), "labels": np.arange(60) % 3}
DIGITS = {**ARRAYS, "images": np.arange(60 * 784, dtype=np.uint8).reshape(60, 28, 28)}  # for zoo:mlp


def small_network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    return net.eval()


def samples(inputs: Tensor | None = None, labels: Tensor | None = None) -> TensorDataset:
    """24 samples of three classes."""
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(24, 4, generator=draw) if inputs is None else inputs
    return TensorDataset(inputs, torch.arange(len(inputs)) % 3 if labels is None else labels)


def classes_data(*parts: TensorDataset) -> mp.Data:
    return mp.as_data(parts or (samples(), samples()), num_classes=3)


def fault_of(result: mp.Result, bound: Callable[[Any], bool] | None = None) -> str | None:
    """What is wrong with a result, judged without the product's own proof and costs."""
    from metaprune.testing import counted_macs

    tensors = [*result.model.parameters(), *result.model.buffers()]
    if any(not t.isfinite().all() for t in tensors if t.is_floating_point() and not t.is_meta):
        return "hands over weights that are not finite"
    after = result.record["cost"]["after"]
    params = sum(p.numel() for p in result.model.parameters())
    if params != after["params"]:
        return f"{after['params']} parameters by the record, {params} by numel"
    if bound is not None:
        macs = counted_macs(result.model.eval(), X[:1])
        if macs != after["macs"] or not bound({"params": params, "macs": macs}):
            return f"{after['macs']} MACs by the record, {macs} as counted"
    return None
