"""Options of the static gates, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from metaprune.cost.metrics import budget_metrics
from metaprune.protocol.options import MethodOptions
from metaprune.train.config import require_choice, require_number


@dataclass(frozen=True, kw_only=True)
class GatesConfig(MethodOptions):
    """Static gates, learned with the weights on the data at hand."""

    name: ClassVar[str] = "gates"
    needs_data: ClassVar[bool] = True

    gate: Literal["concrete", "vib", "beta_bernoulli"] = "concrete"
    """Distribution of a gate."""
    steps: int = 200
    """Gradient steps."""
    batch_size: int = 64
    lr: float = 0.02
    """Learning rate of the weights (SGD)."""
    metric: str = "params"
    """Cost that the gates pay for."""
    strength: float = 2.0
    """Weight of the price of an expected cost off the budget's share, or off 1% where it bounds another metric."""
    kl_weight: float = 1e-3
    """Weight of the KL to the prior, mean over channels; concrete gates have none."""
    temperature: float = 0.5
    keep: float = 0.8
    """Probability to be kept that channels start with."""
    weights: Literal["trained", "given"] = "trained"
    """Hand over the weights as trained under the gates, or leave the network's own."""

    def __post_init__(self) -> None:
        require_choice("gates.gate", self.gate, ("concrete", "vib", "beta_bernoulli"))
        require_choice("gates.metric", self.metric, budget_metrics())
        require_choice("gates.weights", self.weights, ("trained", "given"))
        require_number("gates.steps", self.steps, 1)
        require_number("gates.batch_size", self.batch_size, 2)
        require_number("gates.keep", self.keep, 0.01, 0.99)
        require_number("gates.temperature", self.temperature, 0.0, open_low=True)
