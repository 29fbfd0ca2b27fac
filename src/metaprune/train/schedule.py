"""Learning rate and number of steps as pure functions, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from metaprune.core.imports import import_python_target
from metaprune.train.config import PYTHON, TrainConfig


def steps_per_epoch(samples: int, batch_size: int, num_processes: int = 1) -> int:
    """Optimiser updates in one pass.

    A last batch that leaves a process a single sample is dropped, because batch normalisation has no variance there
    (unless every batch is that small by request).
    """
    full, remainder = divmod(samples, batch_size)
    return full + (1 if remainder // num_processes >= 2 else 0)


def learning_rate(step: int, peak: float, *, total_steps: int, warmup_steps: int, config: TrainConfig) -> float:
    """Learning rate of update `step` (from 0).

    Linear warm-up reaches `peak` at its last step; the cosine (Loshchilov & Hutter 2017, one period) and the line
    start there and would reach zero at step `total_steps`.
    """
    if config.schedule.startswith(PYTHON):
        factor = import_python_target(config.schedule.removeprefix(PYTHON))
        return peak * float(factor(step, total_steps, warmup_steps))
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if config.schedule == "constant":
        return peak
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if config.schedule == "linear":
        return peak * (1.0 - done)
    return peak * 0.5 * (1.0 + math.cos(math.pi * done))
