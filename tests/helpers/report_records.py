"""Records that the report tests share."""

from __future__ import annotations

import copy
from typing import Any

_ACCURACY = {"name": "accuracy", "label": "Accuracy", "higher_is_better": True, "percent": True}
_EPOCH = {"val": {"loss": 1.1, "accuracy": 0.6}, "lr": 0.1, "seconds": 1.0, "samples_per_s": 10.0}


def _train(loss: float, accuracy: float = 0.5) -> dict[str, float]:
    return {"loss": loss, "accuracy": accuracy}


_FULL: dict[str, Any] = {
    "schema": 1,
    "metaprune": "0.1.0",
    "objective": {"kind": "classification", "item": "sample", "primary": _ACCURACY},
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
        "before": 12.3,
        "after": 7.1,
        "spread_before": [12.1, 12.9],
        "spread_after": [7.0, 7.3],
        "batch": 64,
        "threads": 1,
        "repeats": 20,
    },
    "file_bytes": {"before": 1_123_456, "after": 561_234},
    "seconds": {"train": 300.0, "cut": 0.3, "recover": 99.7},
    "history": {
        "train": {"rows": [{"epoch": 1, "train": _train(1.5), **_EPOCH}, {"epoch": 2, "train": _train(1.2), **_EPOCH}]},
        "recover": {"rows": [{"epoch": 1, "train": _train(0.9), **_EPOCH, "val": {"loss": 1.1}}]},
    },
}


def full() -> dict[str, Any]:
    return copy.deepcopy(_FULL)


def minimal() -> dict[str, Any]:
    """Data-free pruning: nothing was trained, evaluated or timed."""
    parts = ("model", "method", "budget", "bounds", "space", "cost")
    empty = {"data": None, "quality": None, "latency_ms": None, "file_bytes": None, "history": None, "seconds": None}
    return {**{k: v for k, v in full().items() if k in parts}, **empty, "proof": {"form": "graph", "error": None}}


_SEARCHED: dict[str, Any] = {
    "method": "pruningnet",
    "method_details": {
        "fit": {
            "options": {"weights": "generated", "sampling": "sandwich", "structures": 4, "distil": True},
            "history": {"rows": [{"epoch": 1, "train": _train(2.3, 0.1), "val": None, "lr": 0.05, "seconds": 3.5}]},
            "seconds": 65.0,
            "macs": 19_650_000_000.0,
            "parameters": 2_544_954,
            "split": {"sub_training": 1200, "sub_validation": 300},
            "genes": 2,
        },
        "search": {
            "searcher": "evolution",
            "generation_size": 2,
            "groups": ["conv1", "layer1.0.conv1"],
            "widths": [[8, 4], [4, 16], [12, 8], [9, 16], [16, 2]],
            "scores": [0.25, 0.5, 0.375, 0.75, 0.5],
            "losses": [2.0, 1.9, 1.8, 1.5, 1.9],
            "costs": {"macs": [20e6, 18e6, 19e6, 20.2e6, 17e6], "params": [5, 4, 3, 2, 1]},
            "uniform_widths": [8, 12],
            "best": 3,
            "macs": 18_310_000_000.0,
        },
    },
    "latency_table": {
        "runtime": "onnxruntime",
        "batch": 64,
        "device_name": "Some CPU",
        "error": {
            "pairs": [[10.0, 11.0], [20.0, 19.0], [30.0, 30.0]],
            "median_relative_error": 0.0526,
            "p90_relative_error": 0.0833,
            "spearman": 0.987,
            "structures": 3,
        },
    },
}


def searched() -> dict[str, Any]:
    """A run of PruningNet with a latency table: five structures, two per generation, the fourth of them won."""
    record = full() | copy.deepcopy(_SEARCHED)
    record["latency_ms"]["predicted"] = 7.25
    return record
