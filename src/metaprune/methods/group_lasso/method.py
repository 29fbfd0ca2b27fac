"""Group-sparsity training (Wen et al., Learning Structured Sparsity in Deep Neural Networks, NeurIPS 2016).

The price is strength * sum over channels of the L2 norm of everything that the channel holds, in all coupled layers
(as Fang et al., DepGraph, CVPR 2023, group parameters). Ours: channels are then ranked by that same norm, each group's
divided by its mean, and the smallest go until the budget is met.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaprune.core.rng import Rng
from metaprune.methods.group_lasso.config import GroupLassoConfig
from metaprune.methods.training import TrainedCopy
from metaprune.objective import Objective
from metaprune.protocol.method import BaseMethod, PruneTask
from metaprune.train.loss import TrainLoss
from metaprune.values import Budget, ChannelGroup, Plan, Proposal, Space

_LEAST = 1e-12  # under the root, whose slope at zero is infinite


@dataclass(frozen=True, kw_only=True)
class GroupLasso(GroupLassoConfig, BaseMethod):
    """Trains under the price, then drops the channels of smallest norm, and hands over the trained weights."""

    def propose(self, task: PruneTask, budget: Budget, rng: Rng) -> Proposal:
        """Raises what training raises, see `metaprune.train.loop.train`."""
        objective = task.require_data(self.name).require_objective()
        allocator = task.allocator(budget)
        if allocator.full_network_fits:
            return Proposal(Plan())
        copied = TrainedCopy(task)
        loss = _Priced(objective, self, task.network.space, copied.tensors)
        history = copied.train(self.train, rng.child("train"), self.name, loss=loss)
        scores = [norms.detach().cpu().numpy() for norms in loss.norms()]
        ranked = [s / max(float(s.mean()), _LEAST) for s in scores]
        details: dict[str, Any] = {"history": history, "norms": [_ends(s) for s in scores]}
        return Proposal(allocator.by_scores(ranked), copied.weights(), (), {self.name: details})


class _Priced(TrainLoss):
    """The objective's loss, and the price of all channels."""

    def __init__(self, objective: Objective, method: GroupLasso, space: Space, tensors: dict[str, Tensor]):
        super().__init__(objective, method.train.label_smoothing)
        self._strength, self._space, self._tensors = method.strength, space, tensors

    def __call__(self, output: Any, inputs: Any, target: Any) -> Tensor:
        price = torch.stack([norms.sum() for norms in self.norms()]).sum()
        return super().__call__(output, inputs, target) + self._strength * price

    def norms(self) -> list[Tensor]:
        """L2 norm of all that each channel holds, [width] of every group."""
        return [channel_norms(group, self._tensors) for group in self._space]


def channel_norms(group: ChannelGroup, tensors: dict[str, Tensor]) -> Tensor:
    """L2 norm of all that each channel of a group holds, [width]; differentiable in the tensors."""
    squares = []
    for member in group.members:
        moved = tensors[member.parameter].movedim(member.dim, 0)
        by_row = moved.reshape(len(moved), -1).square().sum(1)
        squares.append(by_row[torch.from_numpy(member.rows).to(by_row.device)].sum(1))
    return (torch.stack(squares).sum(0) + _LEAST).sqrt()


def _ends(scores: np.ndarray) -> dict[str, float]:
    return {"smallest": float(scores.min()), "median": float(np.median(scores)), "largest": float(scores.max())}
