"""One pass over a training split: its batches and updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch.utils.data import DataLoader, IterableDataset

from metaprune.core.errors import ConfigError, DataError
from metaprune.data.types import NO_SAMPLES, Data
from metaprune.objective import Split
from metaprune.train.config import TrainConfig
from metaprune.train.schedule import steps_per_epoch


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over a training split.

    batch_size: samples per batch; None where batches differ.
    length: samples of the pass; where batches differ, its batches.
    """

    batch_size: int | None
    length: int

    @classmethod
    def of(cls, split: Split, config: TrainConfig) -> Pass:
        """Read a split's pass; over a user's DataLoader the loader's batches, whatever `config.batch_size` asks for."""
        loader = getattr(split, "source", None)
        if not isinstance(loader, DataLoader):
            return cls(config.batch_size, len(split))
        batch_size = loader.batch_size
        if batch_size is None or isinstance(loader.dataset, IterableDataset):
            known = config.steps_per_epoch is not None
            return cls(None, config.steps_per_epoch if known else split.num_batches)  # type: ignore[union-attr, arg-type]
        samples = len(cast("Any", loader.sampler))
        return cls(batch_size, samples - (samples % batch_size if loader.drop_last else 0))

    def steps(self, num_processes: int) -> int:
        """Count the updates of a pass whose batches `num_processes` share.

        Raises:
            DataError: too few samples for one step. ConfigError: fewer samples per batch than processes.
        """
        if self.batch_size is None:
            return self.length
        if self.batch_size < num_processes:
            raise ConfigError(
                f"batch_size={self.batch_size} is below the {num_processes} processes that share each batch: "
                f"use at least {num_processes}"
            )
        steps = steps_per_epoch(self.length, self.batch_size, num_processes)
        if steps == 0:
            raise DataError(
                f"{self.length} training samples over {num_processes} process(es) leave less than two per step: "
                "use more samples, or batch_size=1 for a network without batch normalisation"
            )
        return steps


def training_split(data: Data) -> Split:
    """Raises DataError for data without training samples."""
    if data.train is None or data.train is NO_SAMPLES:
        raise DataError(f"data {data.name!r} has no training samples: training and recovery need a train split")
    return data.train
