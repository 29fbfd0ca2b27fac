"""Options of NetAdapt, without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from metaprune.protocol.options import MethodOptions
from metaprune.train.config import TrainConfig, require_number


@dataclass(frozen=True, kw_only=True)
class NetAdaptConfig(MethodOptions):
    """NetAdapt: the budget is met in steps, each in the layer whose cut hurts least after a short training."""

    name: ClassVar[str] = "netadapt"
    needs_data: ClassVar[bool] = True

    steps: int = 10
    """Steps to the budget, each by the same factor of the cost."""
    short: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=0.1, lr=0.01))
    """Training of every proposal of a step before they are compared."""
    samples: int = 1000
    """Validation samples that compare them."""

    def __post_init__(self) -> None:
        require_number("netadapt.steps", self.steps, 1)
        require_number("netadapt.samples", self.samples, 1)
