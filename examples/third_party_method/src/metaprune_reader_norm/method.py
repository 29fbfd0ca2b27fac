"""Channels ranked by the weights that read them: a channel that no layer weighs can go, however large it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from metaprune.core.rng import Rng
from metaprune.methods.criteria.scores import ScoreMethod, group_scores, member_scores
from metaprune.protocol.method import PruneTask
from metaprune.values import ChannelGroup, Member, Plan
from metaprune_reader_norm.config import ReaderNormConfig


@dataclass(frozen=True, kw_only=True)
class ReaderNorm(ReaderNormConfig, ScoreMethod):
    """A channel's score is the mean over its readers of the sum of |weight| ** power."""

    def scores(self, task: PruneTask, plan: Plan, rng: Rng) -> list[np.ndarray]:
        def read(_: ChannelGroup, member: Member, tensor: torch.Tensor) -> np.ndarray | None:
            reads = member.dim == 1 and tensor.dim() > 1  # weights are [outputs, inputs, ...]
            return member_scores(tensor.abs() ** self.power, member) if reads else None

        return group_scores(task, read, self.normalise)
