"""Random: the control that learned methods have to beat (Li et al., Revisiting Random Channel Pruning, CVPR 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from metaprune.core.rng import Rng
from metaprune.methods.criteria.config import RandomConfig
from metaprune.protocol.method import BaseMethod, PruneTask
from metaprune.values import Budget, Proposal


@dataclass(frozen=True, kw_only=True)
class Random(RandomConfig, BaseMethod):
    """Drops random channels, at random or uniform widths."""

    def propose(self, task: PruneTask, budget: Budget, rng: Rng) -> Proposal:
        allocator = task.allocator(budget)
        draw = rng.child("random").numpy()
        exponents = 2.0 ** draw.uniform(-1, 1, len(task.network.space)) if self.widths == "random" else None
        scores = [draw.random(g.width) for g in task.network.space]
        return Proposal(allocator.by_ratio(scores, exponents))
