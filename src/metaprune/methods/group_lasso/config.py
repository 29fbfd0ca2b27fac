"""Options of group-sparsity training, without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from metaprune.protocol.options import MethodOptions
from metaprune.train.config import TrainConfig, require_number


@dataclass(frozen=True, kw_only=True)
class GroupLassoConfig(MethodOptions):
    """Group lasso: training drives whole channels to zero, by a price on the norm of all that each of them holds."""

    name: ClassVar[str] = "group_lasso"
    needs_data: ClassVar[bool] = True

    strength: float = 1e-3
    """Weight of the price in the loss."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=10, lr=0.01))
    """Training under the price, from the given weights on."""

    def __post_init__(self) -> None:
        require_number("group_lasso.strength", self.strength, 0.0, open_low=True)
