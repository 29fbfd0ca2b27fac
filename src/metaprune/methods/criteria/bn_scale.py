"""BatchNorm scale: |gamma| as the channel's importance (Liu et al., Network Slimming, ICCV 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from metaprune.core.errors import NotAvailableError
from metaprune.core.rng import Rng
from metaprune.methods.criteria.config import BNScaleConfig
from metaprune.methods.criteria.scores import ScoreMethod, group_scores, member_scores
from metaprune.protocol.method import PruneTask
from metaprune.values import ChannelGroup, Member, Plan


@dataclass(frozen=True, kw_only=True)
class BNScale(BNScaleConfig, ScoreMethod):
    """Mean of |gamma| over the BatchNorms of a group, ranked as they are. Groups without a BatchNorm stay whole."""

    def _scales(self, task: PruneTask) -> set[str]:
        modules = task.network.model.named_modules(remove_duplicate=False)
        return {f"{n}.weight" for n, m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine}

    def frozen(self, task: PruneTask) -> set[int]:
        scales = self._scales(task)
        without = {i for i, g in enumerate(task.network.space) if not any(m.parameter in scales for m in g.members)}
        if len(without) == len(task.network.space):
            raise NotAvailableError(
                "bn_scale reads BatchNorm scales, and no channel group has one; use magnitude or taylor"
            )
        return without

    def scores(self, task: PruneTask, plan: Plan, rng: Rng) -> list[np.ndarray]:
        scales = self._scales(task)

        def gamma(_: ChannelGroup, member: Member, tensor: torch.Tensor) -> np.ndarray | None:
            return member_scores(tensor.abs(), member) if member.parameter in scales else None

        return group_scores(task, gamma, self.normalise)
