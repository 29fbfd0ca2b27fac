"""Widths of least total loss within bounds: greedy steps by loss per cost saved, then exchanges between units.

Costs are the exact ones, products of widths and all, so that no linear programme is exact here. A greedy descent by
loss per cost is near the optimum where curves are convex; exchanges mend it where they are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

STRIDES = (1, 2, 4)  # of an exchange, in steps
ROUNDS = 200
STEPS_PER_UNIT = 32  # of the greedy descent

Excess = Callable[[np.ndarray], np.ndarray]
"""Levels [n, units] -> [n]: by how much the bounds are exceeded, as shares of them; 0 within all."""


def least_loss(losses: Sequence[np.ndarray], floor: np.ndarray, excess: Excess) -> np.ndarray:
    """Choose a level of every unit: least sum of losses, within the bounds.

    Args:
        losses: of every unit, the loss at each of its levels, smallest width first.
        floor: the smallest allowed levels; they are within the bounds.
    """
    tops = np.array([len(loss) - 1 for loss in losses])
    stride = np.maximum(1, tops // STEPS_PER_UNIT)
    level = _descended(losses, tops, floor, stride, excess)
    for _ in range(ROUNDS):
        better = _exchanged(losses, level, tops, floor, stride, excess)
        if better is None:
            break
        level = better
    return level


def _total(losses: Sequence[np.ndarray], levels: np.ndarray) -> np.ndarray:
    return np.sum([loss[levels[:, u]] for u, loss in enumerate(losses)], axis=0)


def _descended(
    losses: Sequence[np.ndarray], level: np.ndarray, floor: np.ndarray, stride: np.ndarray, excess: Excess
) -> np.ndarray:
    """Drop, one unit at a time, what loses least per share of the bounds that it saves, until all bounds are met."""
    level = level.copy()
    over = float(excess(level[None])[0])
    while over > 0:
        open_units = np.flatnonzero(level > floor)
        tried = np.repeat(level[None], len(open_units), axis=0)
        rows = np.arange(len(open_units))
        tried[rows, open_units] = np.maximum(level - stride, floor)[open_units]
        left = excess(tried)
        lost = _total(losses, tried) - _total(losses, level[None])
        saved = over - left
        rate = np.where(saved > 0, lost / np.maximum(saved, 1e-300), np.inf)
        best = int(np.argmin(rate)) if np.isfinite(rate).any() else int(np.argmin(lost))
        level, over = tried[best], float(left[best])
    return level


def _exchanged(
    losses: Sequence[np.ndarray],
    level: np.ndarray,
    tops: np.ndarray,
    floor: np.ndarray,
    stride: np.ndarray,
    excess: Excess,
) -> np.ndarray | None:
    """The best exchange of channels between two units that stays within the bounds; None where none gains."""
    moves = []
    for down in np.flatnonzero(level > floor):
        for up in np.flatnonzero(level < tops):
            for less in STRIDES if up != down else ():
                for more in STRIDES:
                    moved = level.copy()
                    moved[down] = max(floor[down], level[down] - less * stride[down])
                    moved[up] = min(tops[up], level[up] + more * stride[up])
                    moves.append(moved)
    moves += [np.where(np.arange(len(level)) == u, level + 1, level) for u in np.flatnonzero(level < tops)]
    if not moves:
        return None
    tried = np.array(moves)
    total, now = _total(losses, tried), float(_total(losses, level[None])[0])
    gaining = tried[total < now - 1e-9 * abs(now)]
    if not len(gaining):
        return None
    fitting = gaining[excess(gaining) <= 0]
    return fitting[int(np.argmin(_total(losses, fitting)))] if len(fitting) else None
