"""LAMP: layer-adaptive magnitude (Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metaprune.core.rng import Rng
from metaprune.methods.criteria.config import LampConfig
from metaprune.methods.criteria.scores import ScoreMethod, group_scores, member_scores, scores_from_data
from metaprune.protocol.method import PruneTask
from metaprune.values import Plan


@dataclass(frozen=True, kw_only=True)
class Lamp(LampConfig, ScoreMethod):
    """A channel's squared norm over the sum of its group's squared norms that are no smaller.

    The paper scores single weights of a layer; here it is channels of a group, by the mean over coupled weights of the
    squared L2 norm of their rows. Every group's largest channel scores 1, so that no group is emptied.
    """

    def scores(self, task: PruneTask, plan: Plan, rng: Rng) -> list[np.ndarray]:
        energies = group_scores(task, lambda _, member, tensor: member_scores(tensor.double() ** 2, member), "none")
        masks = plan.masks(task.network.space)
        return scores_from_data([adaptive(e, m) for e, m in zip(energies, masks, strict=True)], self.normalise)


def adaptive(energies: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Energy of every channel over the sum of those from it on, in ascending order; dropped ones score 0."""
    order = np.argsort(energies, kind="stable")
    order = order[alive[order]]
    sums = np.cumsum(energies[order][::-1])[::-1]
    scores = np.zeros_like(energies)
    scores[order] = energies[order] / np.maximum(sums, np.finfo(float).tiny)
    return scores
