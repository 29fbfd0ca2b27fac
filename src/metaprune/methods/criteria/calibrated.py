"""The common shape of criteria that read activations: calibrate at the current plan, score what reads each group.

Every reader's scores are shares of their sum, so that its scale does not matter; a group's are the mean over its
readers. With several steps the cut network is calibrated anew in each. Labels are not read.

Fall-back: a group that no layer with weights sums over (query and key dimensions of an attention) is ranked as if
weights of one read each channel. A warning names such groups, once.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from metaprune.calibration.calibrate import calibrate
from metaprune.core.rng import Rng
from metaprune.methods.criteria.config import CalibratedConfig
from metaprune.methods.criteria.readers import Reader, readers_of
from metaprune.methods.criteria.scores import ScoreMethod, scores_from_data
from metaprune.protocol.method import PruneTask
from metaprune.search.units import units_of
from metaprune.values import Plan


@dataclass(frozen=True, kw_only=True)
class CalibratedMethod(CalibratedConfig, ScoreMethod):
    """Scores the channels of a group by its readers. Groups that nothing reads score 1 throughout."""

    gram_mb: ClassVar[float] = 0
    """Megabytes for Gram matrices, see `calibrate`."""

    @abstractmethod
    def channel_scores(self, readers: Sequence[Reader]) -> Tensor:
        """Score the channels that stay, float64 [channels], by at least one reader."""

    def scores_apart(self, task: PruneTask, plan: Plan, rng: Rng) -> dict[int, np.ndarray]:
        """Score groups that are not judged by their readers, [channels that stay], by their number."""
        return {}

    def scores(self, task: PruneTask, plan: Plan, rng: Rng) -> list[np.ndarray]:
        network, data = task.network, task.require_data(self.name)
        seed = rng.child("calibration").integer() >> 1
        calibration = calibrate(network, data, samples=self.samples, gram_mb=self.gram_mb, seed=seed, plan=plan)
        scores = [np.zeros(g.width) for g in network.space]
        masks, without = plan.masks(network.space), []
        whole, apart = whole_groups(task), self.scores_apart(task, plan, rng)
        for g, own in apart.items():
            scores[g][masks[g]] = own
        for g, readers in enumerate(readers_of(network, calibration, plan)):
            if not readers or g in whole or g in apart:
                continue
            scores[g][masks[g]] = self.channel_scores(readers).cpu().numpy()
            if not readers[0].is_layer:
                without.append(network.space.groups[g].name)
        if without and not plan.keep:
            warnings.warn(
                f"no layer with weights reads {', '.join(without)}: {self.name} ranks their channels as if weights of "
                "one did",
                stacklevel=2,
            )
        return scores_from_data(scores, self.normalise)


def whole_groups(task: PruneTask) -> set[int]:
    """Groups that the constraints leave whole: no score of theirs is read, and the elimination of a stream is long."""
    space = task.network.space
    units = units_of(space, task.constraints)
    return {int(g) for u in units if (u.levels == space.widths[u.groups]).all() for g in u.groups}


def mean_share(parts: Sequence[Tensor]) -> Tensor:
    """Mean over readers of each one's scores [channels] as shares of their sum."""
    return torch.stack([p / p.sum().clamp(min=torch.finfo(p.dtype).tiny) for p in parts]).mean(0)
