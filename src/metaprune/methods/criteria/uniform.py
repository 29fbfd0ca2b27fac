"""Uniform width: the same keep ratio in every group, the control that every paper shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metaprune.core.rng import Rng
from metaprune.methods.criteria.config import UniformConfig
from metaprune.methods.criteria.magnitude import Magnitude
from metaprune.network import Network
from metaprune.protocol.method import BaseMethod, PruneTask
from metaprune.values import Budget, Plan, Proposal


@dataclass(frozen=True, kw_only=True)
class Uniform(UniformConfig, BaseMethod):
    """Gives every group the same keep ratio, as far as whole channels allow, or one that follows a simple rule."""

    def propose(self, task: PruneTask, budget: Budget, rng: Rng) -> Proposal:
        allocator = task.allocator(budget)
        if self.channels == "magnitude":
            scores = Magnitude(p=1).scores(task, Plan(), rng)
        else:
            scores = [-np.arange(g.width, dtype=float) for g in task.network.space]
        return Proposal(allocator.by_ratio(scores, self._exponents(task.network), fill=self.fill))

    def _exponents(self, network: Network) -> np.ndarray:
        exponents = 2 ** (self.tilt * np.linspace(1, -1, len(network.space)))
        if self.last_whole:
            exponents[_read_last(network)] = 0
        return exponents


def _read_last(network: Network) -> int:
    """Number of the group that the last layer reads, by the order of the parameters; of several, the last."""
    order = {name: i for i, name in enumerate(network.tensors)}
    latest = [max(order[m.parameter] for m in group.members) for group in network.space]
    return int(np.flatnonzero(np.equal(latest, max(latest)))[-1])
