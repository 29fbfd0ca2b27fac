"""Options of soft filter pruning, without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from metaprune.protocol.options import MethodOptions
from metaprune.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class SFPConfig(MethodOptions):
    """Soft filter pruning: filters are zeroed after every epoch of training, and may come back."""

    name: ClassVar[str] = "sfp"
    needs_data: ClassVar[bool] = True

    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=10, lr=0.01))
    """Training in which filters are zeroed, from the given weights on."""
