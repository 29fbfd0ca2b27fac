"""Records that the report tests share."""

from __future__ import annotations

import copy
from typing import Any

_EPOCH = {"train_accuracy": 0.5, "val_loss": 1.1, "val_accuracy": 0.6, "lr": 0.1, "seconds": 1.0, "samples_per_s": 10.0}

_FULL: dict[str, Any] = {
    "metaprune": "0.1.0",
    "created": "2026-03-04T12:33:10+00:00",
    "config": {"method": {"name": "magnitude"}},
    "seed": 0,
    "command": "metaprune prune --budget macs=50%",
    "environment": {"torch": "2.13.0", "device": "cpu", "threads": 2},
    "model": "zoo:resnet20",
    "data": "builtin:fashion-mnist",
    "method": "magnitude",
    "budget": {"macs": "50%"},
    "bounds": {"macs": 20.276e6},
    "space": {
        "digest": "ab12",
        "groups": [
            {"name": "conv1", "before": 16, "after": 9, "members": ["conv1.weight:0", "bn1.weight:0"]},
            {"name": "layer1.0.conv1", "before": 16, "after": 16, "members": ["layer1.0.conv1.weight:0"]},
        ],
        "locked": [
            {"parameter": "a.weight", "dim": 2, "size": 3, "locked": 3, "reason": "conv2d in a (spatial dimension)"},
            {"parameter": "a.weight", "dim": 3, "size": 3, "locked": 3, "reason": "conv2d in a (spatial dimension)"},
            {"parameter": "b.weight", "dim": 2, "size": 3, "locked": 3, "reason": "conv2d in b (spatial dimension)"},
            {"parameter": "fc.weight", "dim": 0, "size": 10, "locked": 10, "reason": "output of the network"},
        ],
        "uncovered": [{"op": "fft_rfft", "node": "fft", "module": "mix"}],
        "notes": ["mean: depends on the width"],
        "over_merged": 0,
    },
    "cost": {
        "before": {"macs": 40_552_000, "params": 272_474, "peak_bytes": 1, "weight_bytes": 1, "memory_mb": 1.23},
        "after": {"macs": 20_200_000, "params": 131_000, "peak_bytes": 1, "weight_bytes": 1, "memory_mb": 0.628},
    },
    "proof": {"form": "module", "why": "equals the sliced graph", "error": 4.5e-16},
    "quality": {
        "split": "test",
        "dense": {"accuracy": 0.912, "loss": 0.3, "samples": 10_000},
        "cut": {"accuracy": 0.634, "loss": 1.2, "samples": 10_000},
        "recovered": {"accuracy": 0.908, "loss": 0.312, "samples": 10_000},
    },
    "latency_ms": {
        "before": 12.3, "after": 7.1, "spread_before": [12.1, 12.9], "spread_after": [7.0, 7.3],
        "batch": 64, "threads": 1, "repeats": 20,
    },
    "file_bytes": {"before": 1_123_456, "after": 561_234},
    "seconds": {"train": 300.0, "cut": 0.3, "recover": 99.7},
    "history": {
        "train": {"rows": [{"epoch": 1, "train_loss": 1.5, **_EPOCH}, {"epoch": 2, "train_loss": 1.2, **_EPOCH}]},
        "recover": {"rows": [{"epoch": 1, "train_loss": 0.9, **_EPOCH, "val_accuracy": None}]},
    },
}  # fmt: skip


def full() -> dict[str, Any]:
    return copy.deepcopy(_FULL)


def minimal() -> dict[str, Any]:
    """Data-free pruning: nothing was trained, evaluated or timed."""
    parts = ("model", "method", "budget", "bounds", "space", "cost")
    empty = {"data": None, "quality": None, "latency_ms": None, "file_bytes": None, "history": None, "seconds": None}
    return {**{k: v for k, v in full().items() if k in parts}, **empty, "proof": {"form": "graph", "error": None}}
