"""Activation: norm of what a channel gives times the norm of the weights that read it.

With p = 2 the square of the score is the energy that the channel brings to its readers, if channels were uncorrelated.
With p = 1 it is the score of Wanda (Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR
2024, |weight| x norm of its input) summed over a channel's weights. Kernel positions count as seeing the same norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from metaprune.methods.criteria.calibrated import CalibratedMethod, mean_share
from metaprune.methods.criteria.config import ActivationConfig
from metaprune.methods.criteria.readers import Reader


@dataclass(frozen=True, kw_only=True)
class Activation(ActivationConfig, CalibratedMethod):
    """L_p norm over a reader's weights, each times the root mean square of the input that it reads."""

    def channel_scores(self, readers: Sequence[Reader]) -> Tensor:
        return mean_share([self._of(r) for r in readers])

    def _of(self, reader: Reader) -> Tensor:
        weights = (reader.matrix.abs() ** self.p).sum((1, 3))
        norms = reader.by_input(reader.seen.second).sqrt()
        return reader.by_channel(norms**self.p * weights) ** (1 / self.p)
