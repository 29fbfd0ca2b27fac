"""The model computes its loss itself, once the labels go in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaprune.core.errors import DataError
from metaprune.objective.base import Objective
from metaprune.objective.batch import batch_size_of


@dataclass(frozen=True)
class OwnLoss(Objective):
    """The whole batch goes into the model, which returns its loss.

    Read is `output.loss`, `output["loss"]`, the sum of a mapping of losses (torchvision's detectors in training mode),
    or a scalar output. A graph form takes the traced inputs only: trace with the labels among `example_kwargs`, or
    prune with form="module".
    """

    name = "own_loss"

    def inputs_and_target(self, batch: Any) -> tuple[Any, Any]:
        return batch, torch.empty(batch_size_of(batch), 0)  # stands for the samples: the labels are in the inputs

    def loss(self, output: Any, target: Any, *, label_smoothing: float = 0.0) -> Tensor:
        value = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", output)
        if value is None and isinstance(output, Mapping) and all(_is_scalar(v) for v in output.values()):
            value = torch.stack([v.reshape(()) for v in output.values()]).sum()
        if isinstance(value, (tuple, list)) and value:
            value = value[0]
        if not isinstance(value, Tensor) or not _is_scalar(value):
            raise DataError(
                f"the model returned no loss (output of type {type(output).__name__}): objective 'own_loss' needs a "
                "model that returns one when labels go in, in evaluation mode too; else use the objective of its logits"
            )
        return value.reshape(())


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()
