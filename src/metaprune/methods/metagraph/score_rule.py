"""A learned scoring rule: a number per feature. Channels are ranked by the sum of features times numbers.

As features are logarithms, a score is a product of powers of plain criteria, and what is learned are the powers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
import torch

from metaprune.core.errors import ConfigError
from metaprune.core.rng import Rng
from metaprune.methods.criteria.scores import ScoreMethod
from metaprune.methods.metagraph.channel_features import OF_CHANNELS, OF_GROUPS, Features, channel_features
from metaprune.protocol.artifact import Artifact
from metaprune.protocol.method import PruneTask
from metaprune.values import Plan

WEIGHTS = "weights"  # name of the artifact's tensor
FEATURES = [*OF_CHANNELS, *OF_GROUPS]


@dataclass(frozen=True)
class Rule:
    """weights: float64 [features of channels and of groups], in the order of `FEATURES`."""

    weights: np.ndarray

    @classmethod
    def of(cls, **weights: float) -> Rule:
        """Make a rule of the features named (spaces as `_`); the others count nothing."""
        given = {name.replace("_", " "): weight for name, weight in weights.items()}
        return cls(np.array([given.get(name, 0.0) for name in FEATURES]))

    @classmethod
    def restored(cls, artifact: Artifact) -> Self:
        """Read it from an artifact.

        Raises:
            ConfigError: an artifact of other features, or of numbers that are none.
        """
        if artifact.info.get("features") != FEATURES:
            raise ConfigError(
                "the artifact was fitted with other features of channels than this version's: fit it again with "
                "`metaprune fit metagraph RECIPE`"
            )
        weights = artifact.tensors[WEIGHTS].numpy()
        if weights.shape != (len(FEATURES),) or not np.isfinite(weights).all():
            raise ConfigError(f"the artifact's {WEIGHTS} are not {len(FEATURES)} finite numbers: fit it again")
        return cls(weights)

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """What an artifact holds of it."""
        return {WEIGHTS: torch.from_numpy(self.weights)}

    def named(self) -> dict[str, float]:
        """Return the numbers by the names of their features."""
        return {name: round(float(weight), 4) for name, weight in zip(FEATURES, self.weights, strict=True)}

    def scores(self, features: Features) -> list[np.ndarray]:
        """Score all channels: [width] per group, the higher the more important."""
        of_channels, of_groups = np.split(self.weights, [len(OF_CHANNELS)])
        levels = features.of_groups @ of_groups
        return [own @ of_channels + level for own, level in zip(features.of_channels, levels, strict=True)]


@dataclass(frozen=True, kw_only=True)
class RuleScores(ScoreMethod):
    """Ranks channels by a rule; features are those of the full network."""

    name: ClassVar[str] = "metagraph"
    needs_data: ClassVar[bool] = True

    rule: Rule = field(repr=False)

    def scores(self, task: PruneTask, plan: Plan, rng: Rng) -> list[np.ndarray]:
        return self.rule.scores(channel_features(task, rng))
