"""What a network really takes: milliseconds of two models side by side, and accuracy where there are labels."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from metaprune.train.modes import modes_restored


def latency_ms(
    models: Sequence[nn.Module], args: tuple, kwargs: dict[str, Any], *, warmup: int = 3, repeats: int = 20
) -> list[dict[str, Any]]:
    """Forward milliseconds of each model in eval mode: median, quartiles, repeats.

    Models take turns within every repeat, so that a busy machine slows all alike.
    """
    seconds: list[list[float]] = [[] for _ in models]
    device = next((a.device for a in args if isinstance(a, torch.Tensor)), torch.device("cpu"))
    with torch.inference_mode():
        for turn in range(warmup + repeats):
            for model, found in zip(models, seconds, strict=True):
                with modes_restored(model):
                    model.eval()
                    _synchronize(device)
                    start = time.perf_counter()
                    model(*args, **kwargs)
                    _synchronize(device)
                    if turn >= warmup:
                        found.append(1e3 * (time.perf_counter() - start))
    return [
        {
            "median": statistics.median(found),
            "quartiles": statistics.quantiles(found, n=4) if repeats > 1 else found,
            "repeats": repeats,
        }
        for found in seconds
    ]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
