"""Knowledge distillation (Hinton, Vinyals & Dean 2015): the original network teaches the pruned one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metaprune.core.errors import ConfigError
from metaprune.core.side_effects import copy_model
from metaprune.objective import Objective
from metaprune.objective.batch import call_model, tensors_in
from metaprune.recover.task import RecoverTask
from metaprune.train.history import History
from metaprune.train.loss import TrainLoss


class DistillationLoss(TrainLoss):
    """`weight` * distillation + (1 - `weight`) * the objective's loss; teaches from a private copy of `teacher`.

    How far two outputs are apart is the objective's to say: softened logits for classes and tokens, else the error. The
    copy stands in evaluation mode on the device of the inputs, so that the teacher itself is never moved or switched.
    """

    def __init__(
        self,
        objective: Objective,
        teacher: nn.Module,
        *,
        temperature: float,
        weight: float,
        label_smoothing: float = 0.0,
    ):
        super().__init__(objective, label_smoothing)
        self._teacher = copy_model(teacher).eval().requires_grad_(False)
        self._device: torch.device | None = None
        self.temperature, self.weight = temperature, weight

    def __call__(self, output: Any, inputs: Any, target: Any) -> Tensor:
        hard = super().__call__(output, inputs, target)
        if self.weight == 0.0:
            return hard
        device = next(tensors_in(inputs)).device
        if self._device != device:
            self._teacher.to(device)
            self._device = device
        with torch.no_grad():
            taught = call_model(self._teacher, inputs)
        soft = self.objective.distillation(output, taught, target, self.temperature)
        return self.weight * soft + (1 - self.weight) * hard


def distil(task: RecoverTask) -> History:
    """Train `task.model` on its labels and on the outputs of `task.original`.

    Raises:
        ConfigError: there is no original.
    """
    loss, options = distillation_of(task)
    return task.train(loss=loss, options=options)


def distillation_of(task: RecoverTask) -> tuple[DistillationLoss, dict[str, float]]:
    """Make the loss of a task, and the options that a checkpoint has to share.

    Raises:
        ConfigError: there is no original.
    """
    config = task.config
    if task.original is None:
        raise ConfigError(
            f"recover={config.kind!r} needs the original network as its teacher: pass it, or use 'finetune'"
        )
    loss = DistillationLoss(
        task.data.require_objective(),
        task.original,
        temperature=config.temperature,
        weight=config.distil_weight,
        label_smoothing=config.train.label_smoothing,
    )
    return loss, {"temperature": config.temperature, "distil_weight": config.distil_weight}
