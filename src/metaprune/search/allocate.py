"""From scores to a plan that meets hard budgets: every method that ranks channels goes through here.

Each unit (a group, groups tied to one ratio, or a branch that may be dropped) has *levels*, the widths it may take;
of a group in several units the smaller width holds. Going down one level drops the
least important channels of its groups. All such steps are ordered by importance, the shortest prefix that meets every
budget is taken, and then steps are given back, the most important first, until not one more fits. What is left over
is therefore less than what any single step would cost.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metaprune.core.errors import InfeasibleBudgetError, NotAvailableError
from metaprune.cost.analytic import CostModel
from metaprune.cost.metrics import cost_metric
from metaprune.search.binding import what_binds
from metaprune.search.config import Scope
from metaprune.search.floor import LATENCY_NOTE, is_monotone, smallest_levels
from metaprune.search.least_loss import least_loss
from metaprune.search.units import all_units, widths_of
from metaprune.values import Budget, Constraints, Cost, Plan, Space


@dataclass(frozen=True)
class Step:
    """Unit `unit` goes from level `level + 1` down to `level`; `priority` orders steps, the lowest go first."""

    unit: int
    level: int
    priority: float


class Allocator:
    """Widths and plans of one network under a budget and constraints.

    Raises:
        InfeasibleBudgetError: even the smallest structure (see `smallest_levels`) exceeds a bound; holds its costs.
        NotAvailableError: a bound on latency without a latency table.
        PlanError: a pattern of the constraints matches nothing.
    """

    def __init__(
        self, space: Space, costs: CostModel, budget: Budget, constraints: Constraints, frozen: set[int] | None = None
    ):
        require_table(budget, costs)
        self.space = space
        self._costs = costs
        self.full: Cost = costs.of_widths(space.widths)
        self.bounds = budget.bounds(self.full)
        self.units = all_units(space, constraints, frozen)
        self._floor = smallest_levels([len(u.levels) for u in self.units], self._widths, costs, self.bounds)
        self._check_feasible(budget, constraints, frozen)

    def _check_feasible(self, budget: Budget, constraints: Constraints, frozen: set[int] | None) -> None:
        smallest = self._costs.of_widths(self._widths(self._floor))
        reachable = {metric: float(smallest[metric]) for metric in self.bounds}
        missed = [m for m, bound in self.bounds.items() if reachable[m] > bound]
        if missed:
            text = "; ".join(
                f"{m} <= {self.bounds[m]:,.6g} asked, smallest reachable {reachable[m]:,.6g} "
                f"({100 * reachable[m] / float(self.full[m]):.2f}% of {float(self.full[m]):,.6g})"
                for m in missed
            )
            shares = [m for m in missed if cost_metric(m).count and self.bounds[m] <= 100 and "%" not in str(budget[m])]
            asked = f"Was {shares[0]}={self.bounds[shares[0]]:g}% meant? " if shares else ""
            note = "" if is_monotone(missed) else f"{LATENCY_NOTE} "
            if len(self.space):
                advice = f"{note}{asked}{what_binds(self.space, self._costs, self.bounds, constraints, frozen)}"
            else:
                advice = "The network has nothing that can be pruned: net.explain() (metaprune inspect) says why"
            raise InfeasibleBudgetError(
                f"no structure meets the budget {budget.to_dict()}: {text}. {advice}", reachable
            )

    @property
    def full_network_fits(self) -> bool:
        """Whether the full network is within every bound already."""
        return all(float(self.full[m]) <= bound for m, bound in self.bounds.items())

    def fits(self, cost: Cost) -> Any:
        """Tell whether (each of) the cost is within every bound."""
        return np.logical_and.reduce([np.asarray(cost[m]) <= bound for m, bound in self.bounds.items()])

    # ------------------------------------------------------------------------------------------ ranking

    def by_scores(
        self, scores: Sequence[np.ndarray], scope: Scope = "global", classes: Sequence[int] | None = None
    ) -> Plan:
        """Keep what scores highest. `scores`: one array [width] per group, higher is more important.

        scope: `global` ranks all channels together; `local` takes the same share of every group; `isomorphic` ranks
        groups of equal structure (`classes`, one number per group) together and takes the same share of every class.
        """
        alike = {"global": [0] * len(self.space), "local": range(len(self.space)), "isomorphic": classes or []}[scope]
        steps = self._steps(scores, alike)
        widths = self.allocate(steps)
        return Plan.of(self.space, [top(s, int(w)) for s, w in zip(scores, widths, strict=True)])

    def by_ratio(self, scores: Sequence[np.ndarray], exponents: np.ndarray | None = None, *, fill: bool = True) -> Plan:
        """Keep the same ratio in every group (or ratio ** exponent of the group); channels by score, branches last.

        exponents: 0 leaves a group whole while others can shrink.
        fill: hand what is left over of the budget to single groups; without, groups of one full width stay alike.
        """
        exponents = np.ones(len(self.space)) if exponents is None else exponents
        steps = []
        for u, unit in enumerate(self.units):
            exponent = exponents[unit.groups[0]]
            if unit.droppable:  # no share of a branch is left: it goes where widths alone do not do
                steps.append(Step(u, 0, 1.0))
                continue
            steps += [Step(u, i, 1 - r ** (1 / exponent) if exponent else 1.0) for i, r in enumerate(unit.ratios()[1:])]
        widths = self.allocate(steps, fill=fill)
        return Plan.of(self.space, [top(s, int(w)) for s, w in zip(scores, widths, strict=True)])

    def by_losses(self, scores: Sequence[np.ndarray], losses: Sequence[np.ndarray]) -> tuple[Plan, float]:
        """Keep widths of least total loss, and in each group the channels that score highest; also that loss.

        losses: of every unit of `self.units`, the loss at each of its levels.
        """
        level = least_loss(losses, self._floor, self._excess)
        spared = {(u, i): loss[i] - loss[i + 1] for u, loss in enumerate(losses) for i in range(len(loss) - 1)}
        level = self._give_back(level, spared)
        plan = Plan.of(self.space, [top(s, int(w)) for s, w in zip(scores, self._widths(level), strict=True)])
        return plan, float(sum(loss[i] for loss, i in zip(losses, level, strict=True)))

    def relaxed(self, metric: str, factor: float) -> Allocator:
        """Return an allocator whose bound on `metric` is `factor` (at least 1) times as large."""
        looser = copy.copy(self)
        looser.bounds = {**self.bounds, metric: factor * self.bounds[metric]}
        return looser

    def _excess(self, levels: np.ndarray) -> np.ndarray:
        cost = self._costs.of_widths(self._widths(levels))
        return np.sum([np.maximum(0, np.asarray(cost[m]) / b - 1) for m, b in self.bounds.items()], axis=0)

    def _steps(self, scores: Sequence[np.ndarray], classes: Sequence[int]) -> list[Step]:
        """One step per level; its score is the mean of the channels it drops, its priority the rank in its class."""
        raw: list[tuple[int, int, float]] = []
        for u, unit in enumerate(self.units):
            ascending = [np.sort(scores[g]) for g in unit.groups]
            for i in range(len(unit.levels) - 1):
                cut = unit.levels[-1] - unit.levels[i : i + 2]  # channels dropped before and after, per group
                dropped = [a[less:more] for a, more, less in zip(ascending, cut[0], cut[1], strict=True)]
                values = np.concatenate(dropped)
                if unit.droppable:  # of a branch that is there, channels may be gone already (-inf)
                    values = values[np.isfinite(values)] if np.isfinite(values).any() else values
                raw.append((u, i, float(values.mean())))
        kind = [classes[unit.groups[0]] for unit in self.units]
        share = [unit.ratios() for unit in self.units]  # equal scores (fresh BatchNorm scales) shrink all alike
        steps = []
        for c in sorted(set(kind)):
            mine = sorted((r for r in raw if kind[r[0]] == c), key=lambda r: (r[2], -share[r[0]][r[1] + 1], r[0]))
            count = max(len(mine), 1)
            steps += [Step(u, i, (rank + 0.5) / count) for rank, (u, i, _) in enumerate(mine)]
        return steps

    # ------------------------------------------------------------------------------------------ allocation

    def allocate(self, steps: Sequence[Step], *, fill: bool = True) -> np.ndarray:
        """Widths int64 [groups] after the shortest prefix of steps that fits, with steps given back while they fit.

        fill: without, nothing is given back, and steps of one priority are all taken or none.
        """
        order = sorted(steps, key=lambda s: (s.priority, s.unit, -s.level))
        ends = [n for n in range(len(order) + 1) if fill or _is_between(order, n)]
        low, high = 0, len(ends) - 1  # the full list reaches the floor, which fits
        while low < high:
            middle = (low + high) // 2
            if self.fits(self._costs.of_widths(self._widths(self._after(order[: ends[middle]])))):
                high = middle
            else:
                low = middle + 1
        level = self._after(order[: ends[low]])
        if not fill:
            return self._widths(level)
        importance = {(s.unit, s.level): s.priority for s in steps}
        return self._widths(self._give_back(level, importance))

    def _after(self, taken: Sequence[Step]) -> np.ndarray:
        level = np.array([len(u.levels) - 1 for u in self.units], dtype=np.int64)
        for step in taken:
            level[step.unit] = min(level[step.unit], max(step.level, self._floor[step.unit]))
        return level

    def _widths(self, level: np.ndarray) -> np.ndarray:
        return widths_of(self.space, self.units, level)

    def _give_back(self, level: np.ndarray, importance: dict[tuple[int, int], float]) -> np.ndarray:
        open_units = [u for u in range(len(level)) if level[u] < len(self.units[u].levels) - 1]
        while open_units:
            tried = np.repeat(level[None], len(open_units), axis=0)
            tried[np.arange(len(open_units)), open_units] += 1
            fits = self.fits(self._costs.of_widths(self._widths(tried)))
            open_units = [u for u, ok in zip(open_units, fits, strict=True) if ok]  # what does not fit now never will
            if open_units:
                best = max(open_units, key=lambda u: (importance[u, int(level[u])], -u))
                level[best] += 1
                if level[best] == len(self.units[best].levels) - 1:
                    open_units.remove(best)
        return level


def require_table(budget: Budget, costs: CostModel) -> None:
    """Raises NotAvailableError for a bound on what only a latency table knows, without one."""
    for metric in budget:
        if not costs.knows(metric):
            noun = cost_metric(metric).noun
            article = "an" if noun[0] in "aeiou" else "a"
            raise NotAvailableError(
                f"{article} {noun} budget needs a table measured on this device: make one with `metaprune "
                "latency MODEL`, pass it as latency_table=FILE (--latency-table on the command line), or bound macs, "
                "params or memory_mb"
            )


def _is_between(order: Sequence[Step], n: int) -> bool:
    """Whether no priority is on both sides of the first `n` steps."""
    return n in (0, len(order)) or order[n - 1].priority != order[n].priority


def top(scores: np.ndarray, keep: int) -> np.ndarray:
    """Boolean mask of the `keep` highest scores; ties go to the lower index."""
    mask = np.zeros(len(scores), dtype=bool)
    mask[np.argsort(-scores, kind="stable")[:keep]] = True
    return mask
