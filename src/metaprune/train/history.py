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
        """Read a row as `History.to_dict` wrote it, in this version or an older one."""
        known = current_epoch(row)
        return cls(**{f.name: known[f.name] for f in dataclasses.fields(cls)})


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


def current_epoch(row: Mapping[str, Any]) -> dict[str, Any]:
    """Translate an epoch's row of versions before objectives, which held losses and accuracies apart; copy any other.

    `{"train_loss": 0.5, "train_accuracy": 0.8, ...}` becomes `{"train": {"loss": 0.5, "accuracy": 0.8}, ...}`.
    """
    if "train" in row:
        return dict(row)
    parts = {p: {m: row.get(f"{p}_{m}") for m in ("loss", "accuracy")} for p in ("train", "val")}
    rest = {k: v for k, v in row.items() if not k.startswith(("train_", "val_"))}
    return {**rest, "train": parts["train"], "val": None if parts["val"]["loss"] is None else parts["val"]}
