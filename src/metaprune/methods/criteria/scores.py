"""Channel scores from parameters, aggregated over all coupled members, and the ranking methods' common shape.

A channel of a group owns rows in several tensors (the filter that makes it, the BatchNorm scale, the slices that read
it). Aggregation: a member's score is the sum of its elements' scores over the channel's rows; the group's score is the
mean over members (a `sum` would let groups with many readers win); with `normalise="mean"` each group's scores are then
divided by their mean, so that groups of different scale can be ranked together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from metaprune.core.errors import WeightsError
from metaprune.core.rng import Rng
from metaprune.methods.criteria.config import Normalise, RankingConfig
from metaprune.methods.criteria.curves import MeasuredWidths
from metaprune.protocol.method import BaseMethod, PruneTask
from metaprune.search.allocate import Allocator
from metaprune.values import Budget, ChannelGroup, Member, Plan, Proposal


def member_scores(elements: torch.Tensor, member: Member) -> np.ndarray:
    """[width]: sum of `elements` (scores of the parameter's entries) over the rows of every channel."""
    others = [d for d in range(elements.dim()) if d != member.dim]
    elements = elements.double()  # a sum in half precision overflows, or loses the small ones
    per_index = (elements.sum(others) if others else elements).cpu().numpy()
    return per_index[member.rows].sum(axis=1)


def makers(group: ChannelGroup, tensors: Mapping[str, torch.Tensor]) -> list[Member]:
    """List the weights that make a group's channels: the rows of matrices and kernels."""
    return [m for m in group.members if m.dim == 0 and tensors[m.parameter].dim() > 1]


def group_scores(
    task: PruneTask, score: Callable[[ChannelGroup, Member, torch.Tensor], np.ndarray | None], normalise: Normalise
) -> list[np.ndarray]:
    """Score every group, one array [width] each. `score(group, member, tensor)` scores a member, None leaves it out."""
    scores_by_group = []
    for group in task.network.space:
        parts = []
        for member in group.members:
            tensor = task.network.tensors[member.parameter]
            if isinstance(tensor, torch.nn.Parameter):
                part = score(group, member, tensor.detach())
                if part is not None and not np.isfinite(part).all():
                    raise WeightsError(
                        f"scores from {member.parameter} are not finite, so its channels cannot be ranked: look for "
                        "NaN and infinity in the weights (and in the training data, if the method reads it)"
                    )
                if part is not None:
                    parts.append(part)
        total = np.mean(parts, axis=0) if parts else np.ones(group.width)
        if normalise == "mean" and total.mean() > 0:
            total = total / total.mean()
        scores_by_group.append(total)
    return scores_by_group


def require_finite(is_finite: bool) -> None:
    """Raises WeightsError where what data said of a network is not finite."""
    if not is_finite:
        raise WeightsError(
            "what the network gives on the training data is not finite, so channels cannot be ranked: look for NaN and "
            "infinity in the weights and in the training data"
        )


def scores_from_data(parts: Sequence[np.ndarray], normalise: Normalise) -> list[np.ndarray]:
    """Check and normalise what data said of every group, one array [width] each; a group without any score is level.

    Raises:
        WeightsError: scores that are not finite.
    """
    require_finite(all(np.isfinite(p).all() for p in parts))
    parts = [p if p.any() else np.ones(len(p)) for p in parts]
    return [p / p.mean() for p in parts] if normalise == "mean" else parts


@dataclass(frozen=True, kw_only=True)
class ScoreMethod(RankingConfig, BaseMethod, ABC):
    """A method that scores channels and drops the lowest."""

    @abstractmethod
    def scores(self, task: PruneTask, plan: Plan, rng: Rng) -> list[np.ndarray]:
        """Score the channels at the current plan, one array [width] per group; higher is more important."""

    def frozen(self, task: PruneTask) -> set[int]:
        """Groups this method has no opinion on and leaves whole."""
        return set()

    def propose(self, task: PruneTask, budget: Budget, rng: Rng) -> Proposal:
        frozen = self.frozen(task)
        plan = Plan()
        measured = MeasuredWidths(task, self.name, rng.child("curves")) if self.allocate == "sensitivity" else None
        task.allocator(budget, frozen)  # infeasible budgets fail before any data is read
        for step, part in enumerate(self._budgets(task, budget)):
            allocator = task.allocator(part, frozen)
            scores = self.scores(task, plan, rng.child("step", step))
            for g, mask in enumerate(plan.masks(task.network.space)):
                scores[g] = np.where(mask, scores[g], -np.inf)  # dropped channels stay dropped
            plan = self._allocated(task, allocator, scores, measured)
        return Proposal(plan, details={} if measured is None else measured.details())

    def _allocated(
        self, task: PruneTask, allocator: Allocator, scores: list[np.ndarray], measured: MeasuredWidths | None
    ) -> Plan:
        """Turn scores into a plan, as `allocate` says."""
        if measured is not None:
            return measured.plan(allocator, scores)
        if self.allocate == "uniform":
            return allocator.by_ratio(scores)
        classes = task.network.isomorphic_classes if self.scope == "isomorphic" else None
        return allocator.by_scores(scores, self.scope, classes)

    def _budgets(self, task: PruneTask, budget: Budget) -> Iterable[Budget]:
        """Bounds that fall linearly from the full cost to the budget in `steps` steps."""
        full = task.network.cost()
        bounds = budget.bounds(full)
        steps = min(self.steps, int(task.network.space.widths.sum()))  # a step drops a channel at least
        for k in range(1, steps + 1):
            if k == steps:
                yield budget
            else:
                start = {m: float(full[m]) for m in bounds}
                yield Budget(**{m: start[m] + (min(b, start[m]) - start[m]) * k / steps for m, b in bounds.items()})
