"""The cheapest structure that units allow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from metaprune.cost.analytic import CostModel
from metaprune.cost.metrics import cost_metric

LATENCY_NOTE = "Latency was minimised by changing one unit at a time, so a feasible structure may have been missed."


def is_monotone(metrics: Iterable[str]) -> bool:
    """Tell whether none of the metrics grows when a width shrinks, so that the smallest widths cost least."""
    return all(cost_metric(metric).monotone for metric in metrics)


def budget_use(widths: np.ndarray, costs: CostModel, bounds: Mapping[str, float]) -> np.ndarray:
    """Compute the largest share of a bound that structures of these widths [n, groups] use, [n]."""
    return np.max([costs.metric(m, widths) / bound for m, bound in bounds.items()], axis=0)


def smallest_levels(
    counts: Sequence[int] | np.ndarray,
    widths: Callable[[np.ndarray], np.ndarray],
    costs: CostModel,
    bounds: Mapping[str, float],
) -> np.ndarray:
    """Find the levels int64 [units] of the cheapest structure.

    For monotone costs these are all zeros. Latency is not monotone in width (16 channels can be faster than 15): with a
    bound on it, each unit in turn moves to the level that lowers the cost most, until the bounds hold or no single move
    helps.

    Args:
        counts: number of levels of every unit.
        widths: levels [n, units] -> widths [n, groups].
    """
    level = np.zeros(len(counts), dtype=np.int64)
    best, before = budget_use(widths(level[None]), costs, bounds)[0], np.inf
    while 1 < best < before and not is_monotone(bounds):
        before = best
        for unit, count in enumerate(counts):
            trials = np.repeat(level[None], count, axis=0)
            trials[:, unit] = np.arange(count)
            loads = budget_use(widths(trials), costs, bounds)
            if loads.min() < best:
                level, best = trials[loads.argmin()], loads.min()
    return level
