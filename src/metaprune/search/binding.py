"""Which constraint keeps a network from meeting a budget: each is left out alone, and the smallest structure costed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from metaprune.cost.analytic import CostModel
from metaprune.search.floor import smallest_levels
from metaprune.search.units import Unit, all_units, widths_of
from metaprune.values import Constraints, Space

Reach = Callable[[Sequence[Unit]], Mapping[str, float]]
"""Units -> share of each missed bound that their cheapest structure uses; above 1 breaks it."""
_MOST = 2  # that are named


@dataclass(frozen=True)
class _Knob:
    text: str
    without: Constraints
    frozen: frozenset[int]


def what_binds(
    space: Space,
    costs: CostModel,
    bounds: Mapping[str, float],
    constraints: Constraints,
    frozen: set[int] | None = None,
) -> str:
    """Say which constraint keeps the bounds from being met, or which parameter the most is left in; and what to do."""

    def smallest(units: Sequence[Unit]) -> np.ndarray:
        wide = partial(widths_of, space, units)
        return wide(smallest_levels([len(u.levels) for u in units], wide, costs, bounds))

    def reach(units: Sequence[Unit]) -> dict[str, float]:
        widths = smallest(units)[None]
        return {metric: float(costs.metric(metric, widths)[0]) / bound for metric, bound in bounds.items()}

    if said := _binding(space, constraints, frozen, reach):
        return f"{said} Raise the budget, or relax that"
    left = costs.elements(smallest(all_units(space, Constraints())))
    if not left:
        return "No constraint binds. Raise the budget"
    name = max(left, key=lambda n: left[n])
    reasons = dict.fromkeys(d.reason for d in space.locked if d.parameter == name)
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return f"No constraint binds: of what cannot be dropped, most is in {name}{why}. Raise the budget"


def _binding(space: Space, constraints: Constraints, frozen: set[int] | None, reach: Reach) -> str:
    """Say, in a sentence, what binds: constraints without which (each alone, else all) the bounds can be met.

    Empty where no constraint moves the smallest structure: the network itself binds.
    """
    whole = frozenset(frozen or ())

    def load(c: Constraints, held: frozenset[int]) -> float:
        return max(reach(all_units(space, c, set(held))).values())

    now = load(constraints, whole)
    if now <= 1:
        return "What binds is the grid of ratios: without it the budget can be met."
    knobs = list(_knobs(space, constraints, whole))
    loads = {k.text: load(k.without, k.frozen) for k in knobs}
    freeing = [k.text for k in knobs if loads[k.text] <= 1]
    if freeing:
        return f"What binds is {' or '.join(freeing[:_MOST])}: without it the budget can be met."
    helping = sorted((text for text, at in loads.items() if at < now), key=lambda text: loads[text])[:_MOST]
    if not helping:
        return ""
    least = load(Constraints(), frozenset())
    if least <= 1:
        return f"What binds is more than one constraint, most of all {' and '.join(helping)}."
    return f"What binds is the network itself; {' and '.join(helping)} add{'s' if len(helping) == 1 else ''} to it."


def _knobs(space: Space, c: Constraints, frozen: frozenset[int]) -> Iterator[_Knob]:
    """Every constraint that was given, in words, and the constraints without it."""
    if c.round_to > 1:
        yield _Knob(f"round_to={c.round_to}", replace(c, round_to=1), frozen)
    least = c.min_keep.values() if isinstance(c.min_keep, Mapping) else [c.min_keep]
    if max(least, default=1) > 1:
        yield _Knob(f"min_keep={c.min_keep}", replace(c, min_keep=1), frozen)
    for i, pattern in enumerate(c.ignore):
        if not pattern.startswith("="):
            yield _Knob(f"ignore {pattern!r}", replace(c, ignore=(*c.ignore[:i], *c.ignore[i + 1 :])), frozen)
    for i, pattern in enumerate(c.whole):
        if not pattern.startswith("="):
            yield _Knob(f"whole {pattern!r}", replace(c, whole=(*c.whole[:i], *c.whole[i + 1 :])), frozen)
    if c.only:
        left = len(space.match(c.only, "only"))
        text = f"only={list(c.only)}, which leaves {left} of {len(space)} groups to shrink"
        yield _Knob(text, replace(c, only=()), frozen)
    for pattern, ratio in c.ratios.items():
        others = {p: r for p, r in c.ratios.items() if p != pattern}
        yield _Knob(f"the ratio {ratio:g} of {pattern!r}", replace(c, ratios=others), frozen)
    for i, tie in enumerate(c.ties):
        if not all(pattern.startswith("=") for pattern in tie):
            text = f"the tie {list(tie)}{_held(space, c, tie, frozen)}"
            yield _Knob(text, replace(c, ties=(*c.ties[:i], *c.ties[i + 1 :])), frozen)
    yield from _rules(c, frozen)
    if frozen:
        yield _Knob(f"the method, which leaves {len(frozen)} groups whole", c, frozenset())


def _rules(c: Constraints, frozen: frozenset[int]) -> Iterator[_Knob]:
    """What `keep_module` and `keep_config` added, all of it: patterns of exact names."""
    ignore, whole = (tuple(p for p in patterns if not p.startswith("=")) for patterns in (c.ignore, c.whole))
    ties = tuple(tie for tie in c.ties if not all(p.startswith("=") for p in tie))
    if (without := replace(c, ignore=ignore, whole=whole, ties=ties)) != c:
        yield _Knob("keep_config" if c.keep_config else "keep_module", without, frozen)


def _held(space: Space, c: Constraints, tie: Sequence[str], frozen: frozenset[int]) -> str:
    """Name a group of the tie that stays whole, and so holds the others; empty where none does."""
    members = space.match(tie, "tie")
    reasons = {f"ignore {p!r}": space.match([p], "ignore") for p in c.ignore}
    reasons |= {f"whole {p!r}": space.match([p], "whole") for p in c.whole}
    if c.only:
        reasons["only"] = set(range(len(space))) - space.match(c.only, "only")
    reasons["the method"] = set(frozen)
    for reason, held in reasons.items():
        if both := sorted(members & held):
            return f", which holds {space[both[0]].name!r}, left whole by {reason}"
    return ""
