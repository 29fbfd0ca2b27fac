"""A user's own loss and score, as plain functions, wrapped into an objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from metaprune.core.arguments import shown
from metaprune.core.errors import DataError, one_line_error
from metaprune.objective.base import Metric, Objective
from metaprune.objective.split import Split

LossFunction = Callable[[Any, Any], Tensor]
"""(model output, target) -> mean loss of the batch []."""
ScoreFunction = Callable[[nn.Module, Any], float]
"""(model in evaluation mode, split) -> a number of which more is better."""

SCORE = Metric("score", "Score")


@dataclass(frozen=True)
class FunctionObjective(Objective):
    """Another objective with a loss or a score of the user's own in place of its own.

    Attributes:
        base: batch adapter, items and metrics; its loss too where no `loss_fn` is given.
        loss_fn: (output, target) -> mean loss [].
        score_fn: (model, split) -> float, more is better: for what is not additive over batches (mAP, lm-eval). It is
            then the primary metric. `split.batches(size, device=...)` yields (inputs, target); a user's own loader is
            `split.source`.
    """

    base: Objective
    loss_fn: LossFunction | None = None
    score_fn: ScoreFunction | None = None

    def __post_init__(self) -> None:
        name = "own functions" if type(self.base) is Objective else f"{self.base.name} with own functions"
        attributes = {
            "name": name,
            "primary": self.base.primary if self.score_fn is None else SCORE,
            "item": self.base.item,
            "smooths_labels": self.base.smooths_labels and self.loss_fn is None,
            "is_label_free": self.base.is_label_free,
        }
        for attribute, value in attributes.items():
            object.__setattr__(self, attribute, value)

    def inputs_and_target(self, batch: Any) -> tuple[Any, Any]:
        return self.base.inputs_and_target(batch)

    def items(self, target: Any) -> float:
        return self.base.items(target)

    def loss(self, output: Any, target: Any, *, label_smoothing: float = 0.0) -> Tensor:
        if self.loss_fn is None:
            return self.base.loss(output, target, label_smoothing=label_smoothing)
        return self.loss_fn(output, target)

    def sensitivity(self, output: Any, target: Any) -> Tensor:
        return self.base.sensitivity(output, target) if self.loss_fn is None else self.loss(output, target)

    def sums(self, output: Any, target: Any) -> Tensor:
        return self.base.sums(output, target)

    def metrics(self, sums: Tensor, items: float) -> Mapping[str, float]:
        return self.base.metrics(sums, items)

    def distillation(self, student: Any, teacher: Any, target: Any, temperature: float) -> Tensor:
        return self.base.distillation(student, teacher, target, temperature)

    def require_fit(self, output: Any, target: Any, *, data: str, num_classes: int) -> None:
        if self.loss_fn is None:
            self.base.require_fit(output, target, data=data, num_classes=num_classes)
            return
        try:
            self.loss_fn(output, target)
        except Exception as error:  # a user's function may raise anything
            raise DataError(f"loss_fn failed on the first batch of {data}: {one_line_error(error)}") from error
        super().require_fit(output, target, data=data, num_classes=num_classes)

    def score(self, model: nn.Module, split: Split) -> Mapping[str, float]:
        if self.score_fn is None:
            return self.base.score(model, split)
        try:
            value = float(self.score_fn(model, split))
        except Exception as error:  # a user's function may raise anything
            raise DataError(
                f"score_fn failed: {one_line_error(error)}; it takes (model, split) and returns a number"
            ) from error
        if not math.isfinite(value):
            raise DataError(f"score_fn returned {value:g}: return a finite number, of which more is better")
        return {"score": value}

    def chance(self, num_classes: int) -> float | None:
        return self.base.chance(num_classes) if self.score_fn is None else None


def from_functions(
    base: Objective | None, loss_fn: LossFunction | None, score_fn: ScoreFunction | None
) -> FunctionObjective:
    """Give `base` (or none) a loss or score function of the user's own.

    Raises:
        DataError: something that cannot be called, or neither an objective nor a loss.
    """
    for name, function in (("loss_fn", loss_fn), ("score_fn", score_fn)):
        if function is not None and not callable(function):
            raise DataError(f"{name}={shown(function)} cannot be called: give a function")
    if base is None and loss_fn is None:
        raise DataError("score_fn judges and does not train: give an objective or loss_fn as well")
    return FunctionObjective(base if base is not None else Objective(), loss_fn, score_fn)
