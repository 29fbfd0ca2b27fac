"""What may shrink on its own, and to which widths: one group, or several that are tied to one keep ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metaprune.core.errors import PlanError
from metaprune.values import Constraints, Space


@dataclass(frozen=True)
class Unit:
    """groups: int64 [m], indices in the space. levels: int64 [n, m], their widths from smallest to full."""

    groups: np.ndarray
    levels: np.ndarray

    @property
    def droppable(self) -> bool:
        """Whether it is a branch that may keep nothing."""
        return not self.levels[0].any()

    def ratios(self) -> np.ndarray:
        """Keep ratio of every level, [n]; the groups of a unit share it."""
        return self.levels[:, 0] / self.levels[-1, 0]


def units_of(space: Space, constraints: Constraints, frozen: set[int] | None = None) -> list[Unit]:
    """Units in the order of their first group. `frozen` groups keep their full width.

    Raises:
        PlanError: a pattern of the constraints matches nothing.
    """
    fixed = fixed_groups(space, constraints, frozen) | space.match(constraints.whole, "whole")
    ties = _tied(space, constraints)
    least = np.maximum(space.least, min_keep(space, constraints))
    units = [Unit(np.array(tie), _levels(space, tie, constraints.round_to, least[tie])) for tie in ties]
    full = [fixed.intersection(u.groups.tolist()) for u in units]
    units = [Unit(u.groups, u.levels[-1:]) if f else u for u, f in zip(units, full, strict=True)]
    for pattern, ratio in constraints.ratios.items():
        wanted = space.match([pattern], "ratio") - fixed
        for i, unit in enumerate(units):
            if wanted.intersection(unit.groups.tolist()):
                nearest = np.abs(unit.ratios() - ratio).argmin()
                units[i] = Unit(unit.groups, unit.levels[nearest : nearest + 1])
    return units


def branch_units(space: Space, constraints: Constraints, frozen: set[int] | None = None) -> list[Unit]:
    """Branches that may be dropped, each a unit of two levels: nothing, and full.

    They share groups with `units_of`; the smaller width of a group holds. Under `keep_config` none may: no config says
    which branches there are.

    Raises:
        PlanError: a pattern of the constraints matches nothing.
    """
    stay = fixed_groups(space, constraints, frozen) | space.match(tuple(constraints.ratios), "ratio")
    stay |= set(np.flatnonzero(min_keep(space, constraints) > 0).tolist())
    free = (np.array(groups) for groups in space.branch_groups if stay.isdisjoint(groups))
    units = [Unit(groups, np.stack([0 * space.widths[groups], space.widths[groups]])) for groups in free]
    return [] if constraints.keep_config else units


def min_keep(space: Space, constraints: Constraints) -> np.ndarray:
    """Least width of every group that is asked for, int64 [groups]; 0 where its branch may be dropped.

    Raises:
        PlanError: a pattern that matches nothing, or experts alone, of which their router takes more.
    """
    if not isinstance(constraints.min_keep, Mapping):
        return np.full(len(space), constraints.min_keep, dtype=np.int64)
    least = np.ones(len(space), dtype=np.int64)
    for pattern, count in reversed(list(constraints.min_keep.items())):  # the first that matches holds
        named = list(space.match([pattern], "min_keep"))
        least[named] = count
        taken = min(space.least[named], default=0)
        alone = len(named) < len(space) and all(space.groups[g].role == "experts" for g in named)
        if alone and 0 < count < taken:
            raise PlanError(f"min_keep of {pattern!r} is {count}, and the router takes {taken} experts: give {taken}")
    return least


def fixed_groups(space: Space, constraints: Constraints, frozen: set[int] | None = None) -> set[int]:
    """Groups that stay as they are: those that `ignore` names or `only` does not, and `frozen`."""
    fixed = space.match(constraints.ignore, "ignore") | (frozen or set())
    if constraints.only:
        fixed |= set(range(len(space))) - space.match(constraints.only, "only")
    return fixed


def all_units(space: Space, constraints: Constraints, frozen: set[int] | None = None) -> list[Unit]:
    """Units of widths, then branches that may be dropped."""
    return units_of(space, constraints, frozen) + branch_units(space, constraints, frozen)


def widths_of(space: Space, units: Sequence[Unit], level: np.ndarray) -> np.ndarray:
    """Levels [..., units] -> widths int64 [..., groups]; the smaller where units share a group."""
    widths = np.broadcast_to(space.widths, (*level.shape[:-1], len(space))).copy()
    for u, unit in enumerate(units):
        widths[..., unit.groups] = np.minimum(widths[..., unit.groups], unit.levels[level[..., u]])
    return widths


def _tied(space: Space, constraints: Constraints) -> list[list[int]]:
    """Groups by tie; ties that share a group are one."""
    leader = list(range(len(space)))

    def find(g: int) -> int:
        while leader[g] != g:
            g = leader[g]
        return g

    for patterns in constraints.ties:
        members = sorted(space.match(patterns, "tie"))
        for g in members[1:]:
            a, b = sorted((find(members[0]), find(g)))
            leader[b] = a
    ties: dict[int, list[int]] = {}
    for g in range(len(space)):
        ties.setdefault(find(g), []).append(g)
    return list(ties.values())


def _levels(space: Space, tie: Sequence[int], round_to: int, least: np.ndarray) -> np.ndarray:
    """Widths [n, m], one ratio k / gcd per level: multiples of `round_to` of at least `least`, and full.

    Experts are counted, not as wide as a kernel's rows: they are not rounded.
    """
    full = space.widths[tie]
    multiple = np.array([1 if space.groups[g].role == "experts" else round_to for g in tie])
    steps = int(np.gcd.reduce(full))
    widths = np.arange(1, steps)[:, None] * (full // steps)
    allowed = (widths % multiple == 0) & (widths >= least)
    return np.vstack([widths[allowed.all(axis=1)], full])
