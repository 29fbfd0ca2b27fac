"""Uniform width: the same keep ratio in every group, the control that every paper shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metaprune.core.rng import Rng
from metaprune.methods.criteria.config import UniformConfig
from metaprune.methods.criteria.magnitude import Magnitude
from metaprune.protocol.method import BaseMethod, PruneTask
from metaprune.values import Budget, Plan, Proposal


@dataclass(frozen=True, kw_only=True)
class Uniform(UniformConfig, BaseMethod):
    """Gives every group the same keep ratio, as far as whole channels allow."""

    def propose(self, task: PruneTask, budget: Budget, rng: Rng) -> Proposal:
        allocator = task.allocator(budget)
        if self.channels == "magnitude":
            scores = Magnitude(p=1).scores(task, Plan(), rng)
        else:
            scores = [-np.arange(g.width, dtype=float) for g in task.network.space]
        return Proposal(allocator.by_ratio(scores, fill=self.fill))
