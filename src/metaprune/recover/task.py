"""What every kind of recovery is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from metaprune.core.rng import Rng
from metaprune.data.types import Data
from metaprune.recover.config import RecoverConfig
from metaprune.surgery.cut import Pruned
from metaprune.train.history import EpochRow, History
from metaprune.train.loop import train
from metaprune.train.loss import TrainLoss

ToSize = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoverTask:
    """`model` is changed in place; `original` (the network before pruning) is only read.

    pruned: the cut that made `model`, where a run of ours did.
    to_size: tensors of `original` by name -> those of the model's shapes, where its weights come from the original's.
    """

    model: nn.Module
    original: nn.Module | None
    data: Data
    config: RecoverConfig
    rng: Rng
    device: torch.device | str | None = None
    checkpoint_dir: Path | None = None
    progress: bool = True
    on_epoch: Callable[[EpochRow], None] | None = None
    initialise: Callable[[nn.Module], None] | None = None
    identity: Mapping[str, Any] | None = None
    to_size: ToSize | None = None
    pruned: Pruned | None = None

    def train(
        self,
        *,
        model: nn.Module | None = None,
        loss: TrainLoss | None = None,
        optimizer: str = "sgd",
        options: Mapping[str, Any] | None = None,
    ) -> History:
        """Run the training loop of `config.train`, on `model` where that holds the task's own model.

        `optimizer` is what `auto` stands for, `options` are what a checkpoint has to share besides `kind`.
        """
        config = self.config.train
        return train(
            self.model if model is None else model,
            self.data,
            replace(config, optimizer=optimizer) if config.optimizer == "auto" else config,
            rng=self.rng.child("train"),
            device=self.device,
            loss=loss,
            is_trained=self.config.kind != "scratch",
            checkpoint_dir=self.checkpoint_dir,
            progress=self.progress,
            on_epoch=self.on_epoch,
            label=self.config.kind,
            identity={**(self.identity or {}), "recover": {"kind": self.config.kind, **(options or {})}},
        )


class Recovery(Protocol):
    """One kind of recovery."""

    def __call__(self, task: RecoverTask) -> History: ...
