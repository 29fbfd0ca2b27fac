"""SNIP by channel: how sensitive the loss is to every connection (Lee et al., ICLR 2019), summed over a channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from metaprune.methods.criteria.config import SnipConfig
from metaprune.methods.criteria.scores import member_scores
from metaprune.methods.criteria.taylor_batch import TaylorBatch
from metaprune.values import Member


@dataclass(frozen=True, kw_only=True)
class Snip(SnipConfig, TaylorBatch):
    """Sum of |weight * gradient| on one mini-batch, meant for networks before training. The channel form is ours: the
    paper ranks single weights."""

    def _sum(self, change: torch.Tensor, member: Member) -> np.ndarray:
        return member_scores(change.abs(), member)
