"""Magnitude: the norm of everything a channel owns (Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metaprune.core.rng import Rng
from metaprune.methods.criteria.config import MagnitudeConfig
from metaprune.methods.criteria.scores import ScoreMethod, group_scores, member_scores
from metaprune.protocol.method import PruneTask
from metaprune.values import Plan


@dataclass(frozen=True, kw_only=True)
class Magnitude(MagnitudeConfig, ScoreMethod):
    """A channel's score is the mean over its coupled weights of the L_p norm of its rows."""

    def scores(self, task: PruneTask, plan: Plan, rng: Rng) -> list[np.ndarray]:
        return group_scores(
            task,
            lambda _, member, tensor: member_scores(tensor.abs().double() ** self.p, member) ** (1 / self.p),
            self.normalise,
        )
