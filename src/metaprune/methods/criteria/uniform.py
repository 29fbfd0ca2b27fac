"""Uniform width: the same keep ratio in every group, the control that every paper shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from metaprune.core.errors import ConfigError
from metaprune.core.rng import Rng
from metaprune.methods.criteria.magnitude import Magnitude
from metaprune.protocol.method import Task
from metaprune.values import Budget, Plan, Proposal


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """channels: which stay in a group: `magnitude` (largest L1 norm) or `first` (as slimmable networks)."""

    name: ClassVar[str] = "uniform"
    needs_data: ClassVar[bool] = False
    channels: Literal["magnitude", "first"] = "magnitude"

    def __post_init__(self) -> None:
        if self.channels not in ("magnitude", "first"):
            raise ConfigError(f"channels is magnitude or first, not {self.channels!r}")

    def propose(self, task: Task, budget: Budget, rng: Rng) -> Proposal:
        allocator = task.allocator(budget)
        if self.channels == "magnitude":
            scores = Magnitude(p=1).scores(task, Plan(), rng)
        else:
            scores = [-np.arange(g.width, dtype=float) for g in task.network.space]
        return Proposal(allocator.by_ratio(scores))
