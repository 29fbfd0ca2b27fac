"""Plain pruning of a network with given weights: a plan by any ranking criterion, and its score along the budget."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metaprune.core.errors import ConfigError, InfeasibleBudgetError
from metaprune.core.rng import Rng
from metaprune.data.loader_split import replayed
from metaprune.methods.criteria.scores import ScoreMethod
from metaprune.methods.metagraph.config import MetaGraphConfig
from metaprune.methods.weight_masks.method import WeightMasks
from metaprune.objective import Objective, signed
from metaprune.objective.batch import batch_size_of, call_model, channels_last
from metaprune.protocol.method import PruneTask
from metaprune.protocol.registry import create_method
from metaprune.train.evaluate import quality_on
from metaprune.train.traced_module import TracedModule
from metaprune.values import Budget, Plan

Batches = Sequence[tuple[Any, Any]]


def ranking(name: str, options: Mapping[str, Any]) -> ScoreMethod:
    """Raises ConfigError for a method that ranks no channels."""
    method = create_method(name, dict(options))
    if not isinstance(method, ScoreMethod):
        raise ConfigError(f"criterion {name!r} ranks no channels: use magnitude, bn_scale, taylor, fpgm or snip")
    return method


def weight_criterion(config: MetaGraphConfig) -> WeightMasks | None:
    """Make the criterion of single weights; None where channels are pruned."""
    return None if config.pattern == "channels" else WeightMasks(pattern=config.pattern)


@dataclasses.dataclass(frozen=True)
class Pruner:
    """One task's network under other weights; channels that `start` dropped stay dropped."""

    task: PruneTask
    criterion: ScoreMethod
    start: Plan = dataclasses.field(default_factory=Plan)

    @cached_property
    def _full_macs(self) -> float:
        return float(self.task.network.cost().macs)

    def scores(self, tensors: Mapping[str, Tensor], rng: Rng) -> list[np.ndarray]:
        task = dataclasses.replace(self.task, network=self.task.network.with_tensors(tensors))
        with torch.enable_grad():  # Taylor's scores need it, whoever asks
            scores = self.criterion.scores(task, self.start, rng)
        masks = self.start.masks(self.task.network.space)
        return [np.where(mask, s, -np.inf) for mask, s in zip(masks, scores, strict=True)]

    def plan(self, tensors: Mapping[str, Tensor], budget: Budget, rng: Rng) -> Plan:
        """Raises InfeasibleBudgetError if no structure meets the budget."""
        space, allocator = self.task.network.space, self.task.allocator(budget)
        classes = self.task.network.isomorphic_classes if self.criterion.scope == "isomorphic" else None
        allocated = allocator.by_scores(self.scores(tensors, rng), self.criterion.scope, classes)
        # a loose budget has room for channels that are gone: they would come back as zeros
        pairs = zip(allocated.masks(space), self.start.masks(space), strict=True)
        return Plan.of(space, [mask & alive for mask, alive in pairs])

    def at_share(self, tensors: Mapping[str, Tensor], share: float, rng: Rng) -> Plan:
        """Plan for a share of the MACs, or for the least that can be reached."""
        return self.plan(tensors, Budget(macs=max(share * self._full_macs, self._least_macs)), rng)

    @cached_property
    def _least_macs(self) -> float:
        return least_macs(self.task)

    def share(self, plan: Plan) -> float:
        """MACs of a plan, as a share of the full network's."""
        return float(self.task.network.cost(plan).macs) / self._full_macs

    def curve(
        self,
        tensors: Mapping[str, Tensor],
        shares: Sequence[float],
        calibration: Batches,
        judged: Batches,
        rng: Rng,
        tuning: Batches = (),
        lr: float = 0.0,
    ) -> list[dict[str, float]]:
        """Score on `judged` after pruning to each share of the MACs and a step on each of `tuning`'s batches.

        The score is the primary metric, negated where less of it is better. BatchNorm is re-estimated on `calibration`.
        """
        rows, objective = [], self.task.require_data("metagraph").require_objective()
        for share in shares:
            plan = self.at_share(tensors, share, rng)
            module = TracedModule(self.task.network, tensors, plan)
            module.tune(tuning, lr, objective)
            module.calibrate(calibration)
            score = signed(objective.primary, metric_of(module, judged, objective))
            rows.append({"macs": self.share(plan), "score": score})
        return rows


def least_macs(task: PruneTask) -> float:
    """MACs of the smallest structure."""
    try:
        task.allocator(Budget(macs=1))
    except InfeasibleBudgetError as error:
        return float(error.smallest["macs"])
    return 1.0


def metric_of(module: TracedModule, batches: Batches, objective: Objective) -> float:
    """Measure the objective's primary metric on (inputs, target) batches, in evaluation mode."""
    module.eval()
    quality = quality_on(lambda inputs: call_model(module, channels_last(inputs)), batches, objective)
    return quality.metrics.get(objective.primary.name, quality["loss"])


def area(rows: Sequence[Mapping[str, float]], key: str = "score") -> float:
    """Mean of a figure over the range of MACs, by trapezoids; rows in any order."""
    points = sorted((r["macs"], r[key]) for r in rows)
    if len(points) < 2 or points[-1][0] == points[0][0]:
        return float(np.mean([a for _, a in points]))
    parts = [(x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(points)]
    return float(sum(parts) / (points[-1][0] - points[0][0]))


def some_batches(split: Any, batch_size: int, count: int, device: torch.device, rng: Rng | None) -> Batches:
    """Read the first `count` batches of one pass, shuffled iff `rng` is given.

    A last batch of one sample is left out: it has no variance.
    """
    with replayed(split, rng or Rng(0)):
        batches = list(itertools.islice(split.batches(batch_size, device=device, rng=rng), count))
    return batches[:-1] if len(batches) > 1 and batch_size_of(batches[-1][0]) == 1 else batches
