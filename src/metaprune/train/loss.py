"""What the training loop minimises."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metaprune.core.errors import ConfigError
from metaprune.objective import Objective


class TrainLoss:
    """The objective's loss. Subclasses train on something else, and are judged by the objective all the same."""

    def __init__(self, objective: Objective, label_smoothing: float = 0.0):
        if label_smoothing and not objective.smooths_labels:
            raise ConfigError(
                f"label_smoothing={label_smoothing:g} does nothing for objective {objective.name!r}: leave it out"
            )
        self.objective, self.label_smoothing = objective, label_smoothing

    def __call__(self, output: Any, inputs: Any, target: Any) -> Tensor:
        """Mean loss [] of a batch."""
        return self.objective.loss(output, target, label_smoothing=self.label_smoothing)

    def judged(self, output: Any) -> Any:
        """Take the part of the output that metrics are taken from."""
        return output
