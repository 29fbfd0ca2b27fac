"""Experiment trackers (TensorBoard, Weights & Biases, MLflow, ...), through Accelerate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, get_available_trackers

from metaprune.core.errors import ConfigError, closest
from metaprune.core.imports import import_python_target
from metaprune.train.config import PYTHON, TrainConfig
from metaprune.train.history import EpochRow

PROJECT = "metaprune"


def tracker_of(config: TrainConfig, folder: Path) -> Any:
    """Make what Accelerate takes as `log_with`: a name, an object of the user's own class, or None.

    Raises:
        ConfigError: a tracker that is not installed, or unknown.
    """
    name = config.log_with
    if name is None:
        return None
    if name.startswith(PYTHON):
        tracker = import_python_target(name.removeprefix(PYTHON))(PROJECT, logging_dir=str(folder))
        if not isinstance(tracker, GeneralTracker):
            raise ConfigError(
                f"log_with={name!r} made a {type(tracker).__name__}; it has to be an accelerate GeneralTracker"
            )
        return tracker
    known = [str(t.value if hasattr(t, "value") else t) for t in get_available_trackers()]
    if name not in known:
        raise ConfigError(
            f"log_with={name!r} is not installed or unknown.{closest(name, known)} Here: {', '.join(known) or 'none'}; "
            f"install its package, as `pip install {name}`"
        )
    return name


@contextmanager
def tracked(accelerator: Accelerator, config: TrainConfig) -> Iterator[None]:
    """Start the trackers with the options of the training, and finish them on exit."""
    if config.log_with is None:
        yield
        return
    options = {
        k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in dataclasses.asdict(config).items()
    }
    accelerator.init_trackers(PROJECT, config=options)
    try:
        yield
    finally:
        if accelerator.is_main_process:
            for tracker in accelerator.trackers:  # `end_training` would destroy the process group as well
                tracker.finish()


def log_epoch(accelerator: Accelerator, label: str, row: EpochRow) -> None:
    """Log an epoch as `LABEL/train/loss`, `LABEL/val/accuracy`, ... at its number."""
    figures = {f"{label}/train/{k}": v for k, v in row.train.items()}
    figures |= {f"{label}/val/{k}": v for k, v in (row.val or {}).items()}
    accelerator.log({**figures, f"{label}/lr": row.lr, f"{label}/samples_per_s": row.samples_per_s}, step=row.epoch)
