"""What a training run reports: one row per epoch, as plain numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochRow:
    """Figures of one epoch."""

    epoch: int
    """Epochs done, from 1."""
    train: Mapping[str, float]
    """`loss` (what was trained on) and the objective's metrics over the epoch's samples, while the weights moved."""
    val: Mapping[str, float] | None
    """`loss` (the objective's) and its metrics on the validation split after the epoch; None without one."""
    lr: float
    """Learning rate of the epoch's last step."""
    seconds: float
    """Wall time of the training part, validation and checkpoint not included."""
    samples_per_s: float
    """Training samples per second, over all processes."""

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> EpochRow:
        """Read a row as `History.to_dict` wrote it, or as versions before objectives (losses and accuracies apart)."""
        if "train" in row:
            return cls(**row)
        parts = {p: {m: row[f"{p}_{m}"] for m in ("loss", "accuracy")} for p in ("train", "val")}
        rest = {k: row[k] for k in ("epoch", "lr", "seconds", "samples_per_s")}
        return cls(train=parts["train"], val=None if parts["val"]["loss"] is None else parts["val"], **rest)


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
        return cls([EpochRow.from_dict(row) for row in value["rows"]])
