"""Variance: what a channel gives beyond its mean (An et al., Fluctuation-based Adaptive Structured Pruning, AAAI 2024).

Variance of the channel times the squared norm of the weights that read it. The mean is left out because a bias can
take it: cut with `compensate="bias"` or "least-squares", or re-estimate BatchNorm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from metaprune.methods.criteria.calibrated import CalibratedMethod, mean_share
from metaprune.methods.criteria.config import VarianceConfig
from metaprune.methods.criteria.readers import Reader


@dataclass(frozen=True, kw_only=True)
class Variance(VarianceConfig, CalibratedMethod):
    """Variance of a channel times the energy of the weights that read it. A constant channel scores 0."""

    def channel_scores(self, readers: Sequence[Reader]) -> Tensor:
        return mean_share([r.by_channel(r.by_input(r.seen.variance) * r.matrix.square().sum((1, 3))) for r in readers])
