"""The one stopwatch: calls that take turns, so that a busy machine slows all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Call = Callable[[], Any]


@dataclass(frozen=True)
class Repeats:
    """How often a thing is run: `warmup` runs, then the median of `repeats`; and by which clock.

    clock: `wall`, or `cpu`: time that the calling thread had a processor, which other work on the machine disturbs less
        (CPU and one thread only, where it equals wall time on an idle machine).
    """

    warmup: int = 2
    repeats: int = 7
    clock: str = "wall"

    @property
    def now(self) -> Callable[[], float]:
        return time.thread_time if self.clock == "cpu" else time.perf_counter


def milliseconds_of(calls: Sequence[Call], repeats: Repeats, device: torch.device) -> np.ndarray:
    """Times every call in turn, warm-up left out; float64 [calls, repeats]."""
    ms = np.zeros((len(calls), repeats.repeats))
    with torch.inference_mode():
        for turn in range(-repeats.warmup, repeats.repeats):
            for row, call in enumerate(calls):
                _synchronize(device)
                start = repeats.now()
                call()
                _synchronize(device)
                spent = repeats.now() - start
                if turn >= 0:
                    ms[row, turn] = 1e3 * spent
    return ms


def medians(calls: Sequence[Call], repeats: Repeats, device: torch.device) -> list[float]:
    """Median milliseconds of each call."""
    return [float(np.median(spent)) for spent in milliseconds_of(calls, repeats, device)]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
