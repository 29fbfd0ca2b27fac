"""FPGM: filters near the geometric median of their layer are redundant (He et al., CVPR 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from metaprune.core.rng import Rng
from metaprune.methods.criteria.config import FPGMConfig
from metaprune.methods.criteria.scores import ScoreMethod, group_scores, makers
from metaprune.protocol.method import PruneTask
from metaprune.values import ChannelGroup, Member, Plan


@dataclass(frozen=True, kw_only=True)
class FPGM(FPGMConfig, ScoreMethod):
    """Sum of Euclidean distances of a channel's filter to all filters of its layer; mean over the layers of a group."""

    def scores(self, task: PruneTask, plan: Plan, rng: Rng) -> list[np.ndarray]:
        masks = plan.masks(task.network.space)
        alive = {g.name: mask for g, mask in zip(task.network.space, masks, strict=True)}

        def distances(group: ChannelGroup, member: Member, tensor: torch.Tensor) -> np.ndarray | None:
            # where no tensor makes the channels, those that read them count
            if tensor.dim() < 2 or (member.dim != 0 and makers(group, task.network.tensors)):
                return None
            rows = torch.from_numpy(member.rows).to(tensor.device)
            vectors = tensor.double().movedim(member.dim, 0)[rows].flatten(1)
            among = vectors[torch.from_numpy(alive[group.name]).to(tensor.device)]
            return torch.cdist(vectors, among, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=1).cpu().numpy()

        return group_scores(task, distances, self.normalise)
