"""Soft filter pruning (He et al., Soft Filter Pruning for Accelerating Deep CNNs, IJCAI 2018).

After every epoch the filters of smallest L2 norm are zeroed, at one ratio in all layers, and training goes on with all
of them. After the last they go for good. Ours: the ratio is the one that meets the budget, over the channel groups of
the traced network, so that coupled filters are zeroed together; what it leaves over goes to single groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metaprune.core.rng import Rng
from metaprune.methods.criteria.scores import makers, member_scores
from metaprune.methods.sfp.config import SFPConfig
from metaprune.methods.training import TrainedCopy
from metaprune.protocol.method import BaseMethod, PruneTask
from metaprune.train.history import EpochRow
from metaprune.values import Budget, ChannelGroup, Member, Plan, Proposal


@dataclass(frozen=True, kw_only=True)
class SFP(SFPConfig, BaseMethod):
    """Trains with soft zeros, then keeps the filters of largest norm, and the weights that they ended with."""

    def propose(self, task: PruneTask, budget: Budget, rng: Rng) -> Proposal:
        """Raises what training raises, see `metaprune.train.loop.train`."""
        task.require_data(self.name)
        allocator = task.allocator(budget)
        if allocator.full_network_fits:
            return Proposal(Plan())
        copied = TrainedCopy(task)

        def kept() -> Plan:
            return allocator.by_ratio([filter_norms(g, copied.tensors) for g in task.network.space])

        @torch.no_grad()
        def zero(_: EpochRow) -> None:
            space = task.network.space
            for group, mask in zip(space, kept().masks(space), strict=True):
                for member in _filters(group, copied.tensors):
                    rows = torch.from_numpy(member.rows[~mask].ravel())
                    copied.tensors[member.parameter].index_fill_(member.dim, rows.to(task.network.device), 0)

        history = copied.train(self.train, rng.child("train"), self.name, on_epoch=zero)
        return Proposal(kept(), copied.weights(), (), {self.name: {"history": history}})


def _filters(group: ChannelGroup, tensors: dict[str, Tensor]) -> list[Member]:
    """The weights that make a channel; where there are none, all that it holds."""
    return makers(group, tensors) or list(group.members)


def filter_norms(group: ChannelGroup, tensors: dict[str, Tensor]) -> np.ndarray:
    """L2 norm of what makes each channel, [width]."""
    squares = [member_scores(tensors[m.parameter].detach() ** 2, m) for m in _filters(group, tensors)]
    return np.sqrt(np.sum(squares, axis=0))
