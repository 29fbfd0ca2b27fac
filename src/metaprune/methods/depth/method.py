"""Depth: which residual branches go. Widths stay; a branch is all or nothing.

`cosine` is the block influence of ShortGPT (Men et al. 2024, arXiv 2403.03853, section 3.1: 1 - cosine of a block's
input and output, mean over tokens), here of every branch, not of every layer. Branches go in the order of what they
matter per share of the budget that they save, which is ours: attention and MLP of a layer differ in size.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from metaprune.core.errors import ConfigError, PlanError
from metaprune.core.rng import Rng
from metaprune.data.loader_split import replayed
from metaprune.elastic.program import Step as ProgramStep
from metaprune.methods.depth.config import DepthConfig
from metaprune.network import Network
from metaprune.objective import Objective
from metaprune.objective.batch import batch_size_of, call_arguments, share_of
from metaprune.protocol.method import BaseMethod, PruneTask
from metaprune.search.allocate import Allocator, Step
from metaprune.values import Branch, Budget, Plan, Proposal

_LEAST = 1e-12  # influence per share saved; equal ones go in the order of the network


@dataclass(frozen=True, kw_only=True)
class Depth(DepthConfig, BaseMethod):
    """Drops branches one after the other until the budget is met, then gives back what still fits."""

    def require_feasible(self, task: PruneTask, budget: Budget) -> None:
        _allocator(task, budget)

    def propose(self, task: PruneTask, budget: Budget, rng: Rng) -> Proposal:
        """Return a plan of whole branches.

        Raises:
            PlanError: no branch may be dropped.
            InfeasibleBudgetError: the budget is not met without all of them.
            ConfigError: keep ratios of channels.
        """
        allocator, space = _allocator(task, budget), task.network.space
        units = {space.branch_groups.index(x.groups.tolist()): u for u, x in enumerate(allocator.units) if x.droppable}
        order = self._order(task, allocator, list(units), rng)
        rest = [b for b in units if b not in order]
        widths = allocator.allocate([Step(units[b], 0, float(i)) for i, b in enumerate([*order, *rest])])
        plan = Plan({g.name: () for g, width in zip(space, widths, strict=True) if width == 0})
        dropped = [{"branch": space.branches[b].name, "influence": order[b]} for b in order]
        return Proposal(plan, details={"depth": {"order": dropped}})

    def _order(self, task: PruneTask, allocator: Allocator, branches: list[int], rng: Rng) -> dict[int, float]:
        """Branches in the order in which they go, as many as the budget takes, and what they mattered then."""
        measured = _Measured(task, self, rng)
        order: dict[int, float] = {}
        influence: dict[int, float] = {}
        while not allocator.fits(task.network.cost(_without(task.network, list(order)))):
            left = [b for b in branches if b not in order]
            if self.iterative or not influence:
                influence = dict(zip(left, measured.influences(list(order), left), strict=True))
            saved = _saved(task, allocator, list(order), left)
            rates = [max(influence[b], _LEAST) / s if s > 0 else np.inf for b, s in zip(left, saved, strict=True)]
            first = left[int(np.argmin(rates))]
            order[first] = influence[first]
        return order


def _allocator(task: PruneTask, budget: Budget) -> Allocator:
    """Widths stay; every branch that `ignore` and `only` leave free may go, whatever `min_keep` says."""
    if task.constraints.ratios:
        raise ConfigError(
            f"ratios {sorted(task.constraints.ratios)} fix widths of channels, and depth leaves all widths"
        )
    constraints = replace(task.constraints, min_keep=0, whole=("*",))
    allocator = Allocator(task.network.space, task.network.cost_model(), budget, constraints)
    if not any(unit.droppable for unit in allocator.units):
        raise PlanError("depth: no branch may be dropped; see network.branches, and what ignore and only leave of them")
    return allocator


def _without(network: Network, branches: list[int]) -> Plan:
    return Plan({g: () for b in branches for g in network.space.branches[b].groups})


def _saved(task: PruneTask, allocator: Allocator, gone: list[int], left: list[int]) -> list[float]:
    """By how much of the bounds each branch would lower what is over them."""

    def over(branches: list[int]) -> float:
        cost = task.network.cost(_without(task.network, branches))
        return sum(max(0.0, float(cost[m]) / bound - 1) for m, bound in allocator.bounds.items())

    before = over(gone)
    return [before - over([*gone, b]) for b in left]


class _Measured:
    """What branches matter, on training samples."""

    def __init__(self, task: PruneTask, config: DepthConfig, rng: Rng):
        data = task.require_data(config.name)
        self._network, self._criterion = task.network, config.criterion
        self._objective = data.objective or Objective()
        self._batches: list[tuple[tuple, dict[str, Any], Any]] = []
        seen = 0
        rng = rng.child("samples")
        with replayed(data.train, rng), rng.torch_global():
            for inputs, target in data.train.batches(config.batch_size, device=task.network.device, rng=rng):
                part, wanted = share_of((inputs, target), 0, config.samples - seen)
                self._batches.append((*call_arguments(part), wanted))
                seen += batch_size_of(part)
                if seen >= config.samples:
                    break
        self._dense: list[Any] | None = None

    def influences(self, gone: list[int], left: list[int]) -> list[float]:
        """One number per branch of `left`, where those of `gone` are dropped already; lower matters less."""
        if self._criterion == "cosine":
            return self._cosines(gone, left)
        return [self._loss(_without(self._network, [*gone, b])) for b in left]

    @torch.no_grad()
    def _cosines(self, gone: list[int], left: list[int]) -> list[float]:
        branches = [self._network.space.branches[b] for b in left]
        found: dict[str, list[float]] = {b.name: [] for b in branches}
        at_addition: dict[str, list[Branch]] = defaultdict(list)
        for branch in branches:
            at_addition[branch.addition].append(branch)

        def call(step: ProgramStep, args: list, kwargs: dict) -> Any:
            here = at_addition.get(step.node.name, [])
            before = [_stream(step, branch, args).clone() for branch in here]  # the addition may write into it
            after = step.target(*args, **kwargs)
            for branch, stream in zip(here, before, strict=True):
                cosines = cosine_similarity(stream, after, dim=branch.channel_dim, eps=1e-12)
                found[branch.name].append(float(1 - cosines.double().mean()))
            return after

        at = self._network.at(_without(self._network, gone))
        for args, kwargs, _ in self._batches:
            at.execute(args, kwargs, call=call)
        # one inside a branch that is gone does nothing
        return [float(np.mean(found[b.name])) if found[b.name] else 0.0 for b in branches]

    @torch.no_grad()
    def _loss(self, plan: Plan) -> float:
        whole, at = self._network.at(), self._network.at(plan)
        if self._dense is None:
            self._dense = [whole.execute(args, kwargs) for args, kwargs, _ in self._batches]
        losses = [
            float(self._objective.distillation(at.execute(args, kwargs), dense, target, 1.0))
            for (args, kwargs, target), dense in zip(self._batches, self._dense, strict=True)
        ]
        return float(np.mean(losses))


def _stream(step: ProgramStep, branch: Branch, args: list) -> torch.Tensor:
    """The operand of an addition that is not the branch's."""
    return args[1] if str(step.node.args[0]) == branch.addend else args[0]
