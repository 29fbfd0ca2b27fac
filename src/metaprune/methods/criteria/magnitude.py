"""Magnitude: the norm of everything a channel owns (Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from metaprune.core.errors import ConfigError
from metaprune.core.rng import Rng
from metaprune.methods.criteria.scores import Ranking, group_scores, member_scores
from metaprune.protocol.method import Task
from metaprune.values import Plan


@dataclass(frozen=True, kw_only=True)
class Magnitude(Ranking):
    """p: 1 for L1, 2 for L2. A channel's score is the mean over its coupled weights of the L_p norm of its rows."""

    name: ClassVar[str] = "magnitude"
    p: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p not in (1, 2):
            raise ConfigError(f"p is 1 (L1) or 2 (L2), not {self.p}")

    def scores(self, task: Task, plan: Plan, rng: Rng) -> list[np.ndarray]:
        return group_scores(
            task,
            lambda _, member, tensor: member_scores(tensor.abs().double() ** self.p, member) ** (1 / self.p),
            self.normalise,
        )
