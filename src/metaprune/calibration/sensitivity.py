"""Sensitivity: how far the outputs move when one unit alone gets narrower, its consumers solved in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from metaprune.search.allocate import top
from metaprune.search.units import Unit
from metaprune.values import Plan, Space

SHARES = (0.5, 0.25, 0.1)  # without the last, a deep VGG at a quarter of the MACs kept one channel somewhere
LEAST = 1e-4  # loss that a cut is taken to cost at least, once measured


@dataclass(frozen=True)
class Curve:
    """Loss of one unit alone: its groups, the shares of their widths that were tried, and the divergence there."""

    groups: tuple[str, ...]
    shares: tuple[float, ...]
    losses: tuple[float, ...]

    def at(self, ratios: np.ndarray) -> np.ndarray:
        """Interpolate the loss at shares of the width: a power of the share that is dropped, between what was measured.

        Straight lines would put every optimum where two of them meet. Nothing was measured near an empty group: its
        loss is taken to be three times the last one.
        """
        if not self.shares:  # nothing to choose
            return np.zeros(len(ratios))
        if self.shares == (0.0,):  # a branch: there or not
            return np.where(np.asarray(ratios) > 0, 0.0, max(self.losses[0], LEAST))
        dropped = np.log([*(1 - share for share in self.shares), 1.0])
        losses = np.maximum.accumulate([max(loss, LEAST) for loss in self.losses])
        logs = np.log([*losses, 3 * losses[-1]])
        power = np.clip((logs[1] - logs[0]) / (dropped[1] - dropped[0]), 1, 3)  # towards the full width
        at = np.log(np.maximum(1 - np.asarray(ratios), 1e-9))
        inside = np.exp(np.interp(at, dropped, logs))
        return np.where(at < dropped[0], np.exp(logs[0] + power * (at - dropped[0])), inside)


def sensitivities(
    space: Space, loss_of: Callable[[Plan], float], units: Sequence[Unit], scores: Sequence[np.ndarray]
) -> list[Curve]:
    """Measure every unit alone at a few shares of its width.

    Args:
        loss_of: what a plan costs, as `OutputLoss` says it.
        scores: one array [width] per group; the highest stay.
    """
    curves = []
    for unit in units:
        ratios = unit.ratios()
        levels = sorted({int(np.argmin(np.abs(ratios - share))) for share in SHARES} - {len(ratios) - 1}, reverse=True)
        losses = []
        for level in levels:
            masks = [np.ones(g.width, dtype=bool) for g in space]
            for g, width in zip(unit.groups, unit.levels[level], strict=True):
                masks[g] = top(scores[g], int(width))
            losses.append(loss_of(Plan.of(space, masks)))
        names = tuple(space.groups[g].name for g in unit.groups)
        curves.append(Curve(names, tuple(float(ratios[i]) for i in levels), tuple(losses)))
    return curves
