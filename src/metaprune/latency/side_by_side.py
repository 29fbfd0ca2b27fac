"""What a network really takes: milliseconds of two models side by side, and accuracy where there are labels."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from metaprune.core.modes import modes_restored
from metaprune.latency.timing import Repeats, milliseconds_of


def latency_ms(
    models: Sequence[nn.Module], args: tuple, kwargs: dict[str, Any], *, warmup: int = 3, repeats: int = 20
) -> list[dict[str, Any]]:
    """Forward milliseconds of each model in eval mode: median, quartiles, repeats.

    Models take turns within every repeat, so that a busy machine slows all alike.
    """
    device = next((a.device for a in args if isinstance(a, torch.Tensor)), torch.device("cpu"))
    with ExitStack() as modes:
        for model in models:
            modes.enter_context(modes_restored(model))
            model.eval()
        return calls_ms([partial(model, *args, **kwargs) for model in models], device, warmup=warmup, repeats=repeats)


def calls_ms(
    calls: Sequence[Callable[[], Any]], device: torch.device, *, warmup: int = 3, repeats: int = 20
) -> list[dict[str, Any]]:
    """Milliseconds of each call, in turns: median, quartiles, repeats."""
    times = milliseconds_of(calls, Repeats(warmup, repeats), device).tolist()
    return [
        {
            "median": statistics.median(ms),
            "quartiles": statistics.quantiles(ms, n=4) if repeats > 1 else ms,
            "repeats": repeats,
        }
        for ms in times
    ]
