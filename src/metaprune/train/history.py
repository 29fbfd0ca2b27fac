"""What a training run reports: one row per epoch, as plain numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochRow:
    """Figures of one epoch. Accuracies are in 0..1, losses are means per sample."""

    epoch: int
    """Epochs done, from 1."""
    train_loss: float
    """Mean of the objective over the epoch's samples, while the weights moved."""
    train_accuracy: float
    val_loss: float | None
    """Cross-entropy on the validation split after the epoch; None without one."""
    val_accuracy: float | None
    lr: float
    """Learning rate of the epoch's last step."""
    seconds: float
    """Wall time of the training part, validation and checkpoint not included."""
    samples_per_s: float
    """Training samples per second, over all processes."""


@dataclass(slots=True)
class History:
    """Rows of one training run in order; empty where nothing was trained."""

    rows: list[EpochRow] = field(default_factory=list)

    @property
    def last(self) -> EpochRow | None:
        return self.rows[-1] if self.rows else None

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [dataclasses.asdict(row) for row in self.rows]}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> History:
        return cls([EpochRow(**row) for row in value["rows"]])
