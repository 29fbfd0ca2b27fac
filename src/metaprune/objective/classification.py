"""One class per sample, or any number of labels per sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from metaprune.core.errors import DataError
from metaprune.objective.base import Metric, Objective, logits_of, require_range, soft_cross_entropy, wide

OTHERS = (
    "for another kind of target pass objective='regression', 'multi_label', 'segmentation', 'next_token', "
    "'token_classification', 'own_loss', 'match_outputs' or loss_fn=..."
)


@dataclass(frozen=True)
class Classification(Objective):
    """Integer labels [B], or class probabilities [B, C] as mixup makes them, and logits [B, C]."""

    name = "classification"
    primary = Metric("accuracy", "Accuracy", percent=True)
    smooths_labels = True
    ignore_index: ClassVar[int | None] = None
    """Label of samples that a subclass of its own leaves out; none by default, -100 neither."""

    def require_labels(self, target: Any, num_classes: int, role: str) -> None:
        if isinstance(target, Tensor) and target.ndim == 1:
            require_range(target, num_classes, self.ignore_index, role)

    def loss(self, output: Any, target: Any, *, label_smoothing: float = 0.0) -> Tensor:
        logits = logits_of(output)
        _require_labels(logits, target)
        if target.ndim == 1 and target.device.type == "cpu":  # elsewhere a look at values would wait for the device
            require_range(target, logits.shape[1], self.ignore_index)
        return functional.cross_entropy(wide(logits), target, label_smoothing=label_smoothing)

    def sums(self, output: Any, target: Any) -> Tensor:
        labels = target.argmax(dim=-1) if target.is_floating_point() else target
        return (logits_of(output).detach().argmax(dim=-1) == labels).sum().double()[None]

    def metrics(self, sums: Tensor, items: float) -> Mapping[str, float]:
        return {"accuracy": float(sums[0]) / items}

    def distillation(self, student: Any, teacher: Any, target: Any, temperature: float) -> Tensor:
        return soft_cross_entropy(logits_of(student), logits_of(teacher), temperature)

    def require_fit(self, output: Any, target: Any, *, data: str, num_classes: int) -> None:
        logits = logits_of(output)
        _require_labels(logits, target)
        needed = num_classes if target.is_floating_point() else max(num_classes, int(target.max()) + 1)
        if logits.shape[-1] < needed:
            raise DataError(
                f"{logits.shape[-1]} outputs and {data} has {needed} classes: make the model with "
                f"num_classes={needed}, or give data with labels below {logits.shape[-1]}"
            )
        super().require_fit(output, target, data=data, num_classes=num_classes)

    def chance(self, num_classes: int) -> float | None:
        return 1 / max(2, num_classes)


def _require_labels(logits: Tensor, target: Any) -> None:
    """Raises DataError unless the target is class indices [B] or probabilities [B, C] for logits [B, C]."""
    if isinstance(target, Tensor) and logits.ndim == 2:
        is_indices = target.ndim == 1 and not target.is_floating_point()
        if is_indices or (target.is_floating_point() and target.shape == logits.shape):
            return
    given = f"{target.dtype} {list(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
    raise DataError(
        f"labels {given} for outputs {list(logits.shape)}: objective 'classification' takes integer labels [B], or "
        f"class probabilities [B, classes], and outputs [B, classes]; {OTHERS}"
    )


@dataclass(frozen=True)
class MultiLabel(Objective):
    """Labels in 0..1 [B, C] (bool, integer or floating) and logits [B, C]; F1 is over all labels (micro)."""

    name = "multi_label"
    primary = Metric("f1", "F1", percent=True)

    def require_labels(self, target: Any, num_classes: int, role: str) -> None:
        if not isinstance(target, Tensor) or target.dtype == torch.bool or not target.numel():
            return
        low, high = (float(x) for x in torch.aminmax(target))
        if not 0 <= low <= high <= 1:
            raise DataError(
                f"label {low if not low >= 0 else high:g} in the {role or 'given'} data: objective 'multi_label' takes "
                "labels in 0..1; mend or leave out such samples"
            )

    def loss(self, output: Any, target: Any, *, label_smoothing: float = 0.0) -> Tensor:
        logits = logits_of(output)
        if not isinstance(target, Tensor) or target.shape != logits.shape:
            given = list(target.shape) if isinstance(target, Tensor) else type(target).__name__
            raise DataError(
                f"labels {given} for outputs {list(logits.shape)}: objective 'multi_label' takes labels in 0..1 of the "
                "outputs' shape; for one class per sample pass objective='classification'"
            )
        logits = wide(logits)
        return functional.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))

    def sums(self, output: Any, target: Any) -> Tensor:
        said, true = logits_of(output).detach() > 0, target > 0.5
        counts = (said & true, said & ~true, ~said & true, said == true)
        return torch.stack([c.sum() for c in counts]).double()

    def metrics(self, sums: Tensor, items: float) -> Mapping[str, float]:
        hit, false, missed, right = sums.tolist()
        total = right + false + missed
        return {"f1": 2 * hit / max(2 * hit + false + missed, 1.0), "label_accuracy": right / max(total, 1.0)}

    def distillation(self, student: Any, teacher: Any, target: Any, temperature: float) -> Tensor:
        """T^2 times the binary cross-entropy with the teacher's softened probabilities."""
        soft = torch.sigmoid(logits_of(teacher) / temperature)
        return functional.binary_cross_entropy_with_logits(logits_of(student) / temperature, soft) * temperature**2
