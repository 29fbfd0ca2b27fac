"""Gates per channel: variants `weights` and `structure`. What is kept is a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from metaprune.methods.stamp.generator import MaskGenerator
from metaprune.methods.stamp.learner import Learner
from metaprune.protocol.method import PruneTask
from metaprune.search.units import branch_units, min_keep
from metaprune.values import Budget, Plan, Proposal


class Channels:
    """One gate per channel of every group, consumed where `elastic.gated` says."""

    generator = MaskGenerator
    learner = Learner
    identity: ClassVar[dict[str, Any]] = {}  # what an artifact says of the form beside the method's options

    def __init__(self, task: PruneTask):
        self.task = task

    def slack(self, budget: Budget) -> bool:
        """Tell whether the full network meets `budget`. Raises InfeasibleBudgetError if no structure does."""
        return self.task.allocator(budget).full_network_fits

    def best(self, budget: Budget, probabilities: Sequence[np.ndarray]) -> Proposal:
        """Keep the most probable channels that fit."""
        return Proposal(self.task.allocator(budget).by_scores(probabilities))

    def above(self, threshold: float, probabilities: Sequence[np.ndarray]) -> Proposal:
        """Keep the channels that are more probable than `threshold`, and `min_keep`, at least one, of every group.

        A branch that may go whole and of which no channel is more probable goes.
        """
        space, limits = self.task.network.space, self.task.constraints
        masks = [p > threshold for p in probabilities]
        branches = [unit.groups.tolist() for unit in branch_units(space, limits)]
        gone = {g for groups in branches if not any(masks[g].any() for g in groups) for g in groups}
        least = np.maximum(space.least, min_keep(space, limits))  # one dead layer would end the network
        for g, (mask, p, count) in enumerate(zip(masks, probabilities, least, strict=True)):
            if g not in gone:
                mask[np.argsort(-p, kind="stable")[:count]] = True
        return Proposal(Plan.of(space, masks))

    def figures(self, proposal: Proposal, probabilities: Sequence[np.ndarray]) -> dict[str, Any]:
        """Collect for the record the numbers of the kept channels, and the probabilities of every group."""
        space = self.task.network.space
        return {
            "kept": np.flatnonzero(np.concatenate(proposal.plan.masks(space))).tolist(),
            "probabilities": {
                g.name: [round(float(p), 4) for p in ps] for g, ps in zip(space, probabilities, strict=True)
            },
        }
