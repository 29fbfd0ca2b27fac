"""What can be said of a training before it starts, and before the hours that come before it."""

from __future__ import annotations

from pathlib import Path

from torch.utils.data import DataLoader, IterableDataset

from metaprune.core.imports import import_python_target
from metaprune.data import Data
from metaprune.train.config import PYTHON, TrainConfig
from metaprune.train.loss import TrainLoss
from metaprune.train.one_pass import Pass, training_split
from metaprune.train.tracking import tracker_of


def require_trainable(data: Data, config: TrainConfig, *, own_loss: bool = False) -> None:
    """Check data and options of a training that comes later. Streams without a length are not walked through.

    Args:
        own_loss: the training brings its loss; else it is the objective's.

    Raises:
        DataError: no or too few samples, or labels that mean nothing. ConfigError: an option that names nothing.
    """
    split = training_split(data)
    loader = getattr(split, "source", None)
    if not (isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset)):
        Pass.of(split, config).steps(1)
    if not own_loss:
        TrainLoss(data.require_objective(), config.label_smoothing)
    for target in (config.optimizer, config.schedule):
        if target.startswith(PYTHON):
            import_python_target(target.removeprefix(PYTHON))
    if config.log_with is not None and not config.log_with.startswith(PYTHON):
        tracker_of(config, Path())
