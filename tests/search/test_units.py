"""What shrinks together, and to which widths: ties, `only`, ratios."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaprune.core.errors import PlanError
from metaprune.protocol.method import PruneTask
from metaprune.search.units import units_of
from metaprune.testing import toy
from metaprune.tracing import trace
from metaprune.values import Budget, ChannelGroup, Constraints, Space


def space(*widths: int) -> Space:
    return Space(tuple(ChannelGroup(f"g{i}", w, (), np.arange(w)) for i, w in enumerate(widths)))


def levels(units) -> list[list[list[int]]]:
    return [u.levels.tolist() for u in units]


def test_untied_groups_take_every_width():
    assert levels(units_of(space(3, 2), Constraints())) == [[[1], [2], [3]], [[1], [2]]]


def test_a_tie_keeps_one_ratio():
    (unit,) = units_of(space(12, 4), Constraints(ties=(("g*",),)))
    assert unit.levels.tolist() == [[3, 1], [6, 2], [9, 3], [12, 4]]
    assert unit.ratios().tolist() == [0.25, 0.5, 0.75, 1]


def test_ties_that_share_a_group_are_one():
    units = units_of(space(4, 4, 4, 4), Constraints(ties=(("g0", "g1"), ("g1", "g3"))))
    assert [u.groups.tolist() for u in units] == [[0, 1, 3], [2]]


def test_one_whole_group_keeps_its_tie_whole():
    units = units_of(space(4, 4, 4), Constraints(ties=(("g0", "g1"),), ignore=("g1",)))
    assert levels(units) == [[[4, 4]], [[1], [2], [3], [4]]]


def test_only_leaves_everything_else_whole():
    units = units_of(space(2, 2), Constraints(only=("g1",)))
    assert levels(units) == [[[2]], [[1], [2]]]


def test_round_to_and_min_keep_hold_for_every_group_of_a_tie():
    (unit,) = units_of(space(16, 32), Constraints(ties=(("*",),), round_to=4, min_keep=8))
    assert unit.levels.tolist() == [[8, 16], [12, 24], [16, 32]]


def test_a_ratio_takes_the_nearest_level_of_the_tie():
    (unit,) = units_of(space(12, 4), Constraints(ties=(("*",),), ratios={"g0": 0.6}))
    assert unit.levels.tolist() == [[6, 2]]


def test_a_tie_that_matches_nothing():
    with pytest.raises(PlanError, match="tie pattern"):
        units_of(space(4), Constraints(ties=(("h*",),)))


@given(st.integers(30, 95), st.randoms(use_true_random=False))
def test_allocated_widths_respect_ties(percent, random):
    network = trace(toy("residual").model, toy("residual").args)
    names = [g.name for g in network.space]
    constraints = Constraints(ties=((names[0], names[1]),))
    allocator = PruneTask(network, constraints=constraints).allocator(Budget(params=f"{percent}%"))
    scores = [np.array([random.random() for _ in range(g.width)]) for g in network.space]
    for plan in (allocator.by_scores(scores), allocator.by_ratio(scores)):
        widths = plan.widths(network.space)
        assert widths[0] * network.space.widths[1] == widths[1] * network.space.widths[0]
        assert network.cost(widths).params <= network.cost().params * percent / 100
