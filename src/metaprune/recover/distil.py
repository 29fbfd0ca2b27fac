"""Knowledge distillation (Hinton, Vinyals & Dean 2015): the original network teaches the pruned one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from metaprune.core.errors import ConfigError
from metaprune.recover.task import RecoverTask
from metaprune.train.batch import call_model, cross_entropy, logits_of
from metaprune.train.history import History


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over samples, [].

    `student` and `teacher` are logits [B, C]. T^2 keeps the gradient's size when T changes.
    """
    wide = torch.promote_types(student.dtype, torch.float32)  # half-precision logits lose the small probabilities
    student_log = functional.log_softmax(student.to(wide) / temperature, dim=-1)
    teacher_log = functional.log_softmax(teacher.to(wide) / temperature, dim=-1)
    return functional.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True) * temperature**2


class DistillationObjective:
    """`weight` * distillation loss + (1 - `weight`) * cross-entropy; teaches from a private copy of `teacher`.

    The copy stands in evaluation mode on the device of the labels, so that the teacher itself is never moved or
    switched.
    """

    def __init__(self, teacher: nn.Module, *, temperature: float, weight: float, label_smoothing: float = 0.0):
        self._teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        self._device: torch.device | None = None
        self.temperature, self.weight, self.label_smoothing = temperature, weight, label_smoothing

    def __call__(self, output: Any, inputs: Any, labels: Tensor) -> Tensor:
        if self._device != labels.device:
            self._teacher.to(labels.device)
            self._device = labels.device
        logits = logits_of(output)
        hard = cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if self.weight == 0.0:
            return hard
        with torch.no_grad():
            taught = logits_of(call_model(self._teacher, inputs))
        if taught.shape != logits.shape:
            raise ConfigError(
                f"the original network gives logits {tuple(taught.shape)}, the pruned one {tuple(logits.shape)}: "
                "distillation needs the same classes; use recover='finetune'"
            )
        return self.weight * distillation_loss(logits, taught, self.temperature) + (1 - self.weight) * hard


def distil(task: RecoverTask) -> History:
    """Train `task.model` on its labels and on the outputs of `task.original`. Raises `ConfigError` without one."""
    config = task.config
    if task.original is None:
        raise ConfigError("recover='distil' needs the original network as its teacher: pass it, or use 'finetune'")
    objective = DistillationObjective(
        task.original,
        temperature=config.temperature,
        weight=config.distil_weight,
        label_smoothing=config.train.label_smoothing,
    )
    return task.train(
        objective=objective, options={"temperature": config.temperature, "distil_weight": config.distil_weight}
    )
