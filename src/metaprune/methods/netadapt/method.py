"""NetAdapt (Yang et al., NetAdapt: Platform-Aware Neural Network Adaptation for Mobile Applications, ECCV 2018).

In each step every layer alone is cut as far as the step's budget asks, filters of smallest L2 norm first; each proposal
is trained for a short time, and the most accurate one is taken. With a latency table the budget may be milliseconds,
as in the paper. Ours: layers are the units of the traced network (coupled groups are one), steps are of one factor, not
of one difference, and where no unit alone reaches the step's budget, the most accurate of all is taken.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from metaprune.core.rng import Rng
from metaprune.core.tensors import named_tensors
from metaprune.data import Data
from metaprune.data.splits import at_most
from metaprune.elastic.weights import unslice_tensor
from metaprune.methods.criteria.magnitude import Magnitude
from metaprune.methods.netadapt.config import NetAdaptConfig
from metaprune.methods.training import trainable
from metaprune.objective import signed
from metaprune.protocol.method import BaseMethod, PruneTask
from metaprune.search.allocate import Allocator, top
from metaprune.search.floor import budget_use
from metaprune.search.units import widths_of
from metaprune.surgery import cut
from metaprune.train.evaluate import evaluate
from metaprune.train.loop import train
from metaprune.values import Budget, Plan, Proposal, Trial


@dataclass(frozen=True, kw_only=True)
class NetAdapt(NetAdaptConfig, BaseMethod):
    """Cuts one unit after the other, each time the one that hurts least, and hands over the trained weights."""

    def propose(self, task: PruneTask, budget: Budget, rng: Rng) -> Proposal:
        """Raises what training raises, see `metaprune.train.loop.train`."""
        task.require_data(self.name)
        allocator = task.allocator(budget)
        if allocator.full_network_fits:
            return Proposal(Plan())
        state = _State(self, task, allocator, np.array([len(u.levels) - 1 for u in allocator.units]), {})
        factor = state.load(state.level) ** (-1 / self.steps)
        rows: list[dict[str, Any]] = []
        trials: list[Trial] = []
        while state.load(state.level) > 1:
            target = max(1.0, state.load(state.level) * factor)
            levels = state.proposals(target)
            made = [state.adapted(level, rng.child("step", len(rows), i)) for i, level in enumerate(levels)]
            reached = [m for m in made if state.load(m.level) <= target] or made
            state = max(reached, key=lambda m: m.score)
            trials += [Trial(tuple(map(int, m.widths)), {"load": m.load(m.level)}, m.score) for m in made]
            rows.append({"load": state.load(state.level), "score": state.score, "proposals": len(made)})
        return Proposal(state.plan, state.weights, tuple(trials), {self.name: {"steps": rows}})


@dataclass(frozen=True)
class _State:
    """A structure, as one level of every unit of the allocator, and its weights at full size."""

    method: NetAdaptConfig
    task: PruneTask
    allocator: Allocator
    level: np.ndarray
    weights: dict[str, Tensor]
    score: float = 0.0
    plan: Plan = field(default_factory=Plan)

    @property
    def widths(self) -> np.ndarray:
        return self.widths_at(self.level)

    def widths_at(self, level: np.ndarray) -> np.ndarray:
        return widths_of(self.task.network.space, self.allocator.units, level)

    def load(self, level: np.ndarray) -> float:
        """Largest share of a bound that a structure uses."""
        widths, costs = self.widths_at(level)[None], self.task.network.cost_model()
        return float(budget_use(widths, costs, self.allocator.bounds)[0])

    def proposals(self, target: float) -> list[np.ndarray]:
        """Cut each unit alone to its widest level within `target`, or to its smallest where none is."""
        found = []
        for unit, at in enumerate(self.level):
            lower = [self._with(unit, i) for i in range(at - 1, -1, -1)]
            within = [level for level in lower if self.load(level) <= target]
            if lower:
                found.append(within[0] if within else lower[-1])
        return found

    def _with(self, unit: int, level: int) -> np.ndarray:
        changed = self.level.copy()
        changed[unit] = level
        return changed

    def adapted(self, level: np.ndarray, rng: Rng) -> _State:
        """Cut to `level`, train for a short time, and judge."""
        network, data = self.task.network, self.task.require_data(self.method.name)
        plan = self._plan(self.widths_at(level), rng)
        model = trainable(cut(network, plan, form="graph", verify=False, weights=self.weights).model)
        train(model, _quick(data), self.method.short, rng=rng.child("short"), is_trained=True, progress=False)
        objective = data.require_objective()
        split = at_most(data.val, self.method.samples)
        quality = evaluate(model, split, objective=objective, batch_size=self.task.batch_size)
        score = signed(objective.primary, quality.metrics.get(objective.primary.name, quality["loss"]))
        alive, labels, trained = network.survivors(plan), network.labelled.parameters, named_tensors(model)[0]
        full = {**network.tensors, **self.weights}
        weights = {
            n: unslice_tensor(t.detach(), full[n].detach(), labels.get(n), alive)
            for n, t in trained.items()
            if n in full
        }
        return dataclasses.replace(self, level=level, weights={**self.weights, **weights}, score=score, plan=plan)

    def _plan(self, widths: np.ndarray, rng: Rng) -> Plan:
        """Keep the largest of the channels that are still there."""
        network = self.task.network.with_tensors({**self.task.network.tensors, **self.weights})
        scores = Magnitude(p=2).scores(dataclasses.replace(self.task, network=network), Plan(), rng)
        stay = self.plan.masks(network.space)
        alive = [np.where(mask, s, -np.inf) for s, mask in zip(scores, stay, strict=True)]
        return Plan.of(network.space, [top(s, int(w)) for s, w in zip(alive, widths, strict=True)])


def _quick(data: Data) -> Data:
    """The loop's own look at validation samples, which nothing here reads, is kept short."""
    return dataclasses.replace(data, val=at_most(data.val, 8))
