"""What methods share that train the network before they say what stays."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from metaprune.core.rng import Rng
from metaprune.core.tensors import named_tensors
from metaprune.protocol.method import PruneTask
from metaprune.train.config import TrainConfig
from metaprune.train.history import EpochRow
from metaprune.train.loop import train
from metaprune.train.loss import TrainLoss


def trainable(model: nn.Module) -> nn.Module:
    """Unfreeze all floating parameters of a model of one's own, and return it."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return model


class TrainedCopy:
    """A copy of a task's model, which is trained in its place, frozen parameters too.

    tensors: its own, by the network's names; they change as it is trained.
    """

    def __init__(self, task: PruneTask):
        self.task, self.model = task, trainable(copy.deepcopy(task.network.model))
        own, _ = named_tensors(self.model)
        self.tensors: dict[str, Tensor] = {n: own[n] for n in task.network.tensors if n in own}

    def train(
        self,
        config: TrainConfig,
        rng: Rng,
        label: str,
        *,
        loss: TrainLoss | None = None,
        on_epoch: Callable[[EpochRow], None] | None = None,
    ) -> dict[str, Any]:
        """Train from the given weights on; return the history as plain data."""
        return train(
            self.model,
            self.task.require_data(label),
            config,
            rng=rng,
            device=self.task.network.device,
            loss=loss,
            is_trained=True,
            progress=self.task.progress,
            on_epoch=on_epoch,
            label=label,
        ).to_dict()

    def weights(self) -> dict[str, Tensor]:
        """Return full-size tensors, as a `Proposal` carries them."""
        return {n: t.detach().clone() for n, t in self.tensors.items()}
