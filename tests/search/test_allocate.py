"""Budgets by hand on a network small enough to count."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from metaprune.core.errors import ConfigError, InfeasibleBudgetError, PlanError
from metaprune.core.rng import Rng
from metaprune.methods import create_method
from metaprune.protocol.method import PruneTask
from metaprune.tracing import trace
from metaprune.values import Budget, Constraints, Plan


def two_layers() -> PruneTask:
    """params = 3 w + 2 w + ... : linear 2 -> w (2w + w), linear w -> 1 (w + 1); one group of 10 channels."""
    torch.manual_seed(0)
    return PruneTask(trace(nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 1)), torch.randn(2, 2)))


def three_layers() -> PruneTask:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3))
    return PruneTask(trace(layers, torch.randn(2, 4)))


def test_one_group_keeps_exactly_what_fits():
    task = two_layers()
    assert task.network.cost().params == 41
    for params, width in ((41, 10), (40, 9), (21, 5), (20, 4), (5, 1)):
        plan = task.allocator(Budget(params=params)).by_scores([np.arange(10.0)])
        assert plan.widths(task.network.space).tolist() == [width]
        assert plan.keep.get("0", tuple(range(10))) == tuple(range(10 - width, 10))


def test_the_smallest_structure_is_in_the_error():
    with pytest.raises(InfeasibleBudgetError, match="smallest reachable 5") as caught:
        two_layers().allocator(Budget(params=4))
    assert caught.value.smallest == {"params": 5.0}


def test_time_may_be_lowest_elsewhere_than_at_the_smallest_structure():
    task = two_layers()
    latency = lambda widths: np.where(widths[:, 0] % 4 == 0, 1.0, 2.0) + 0.1 * widths[:, 0]  # noqa: E731
    task = replace(task, network=task.network.with_latency(latency))
    for ms in (1.8, 1.4):  # one channel takes 2.1
        plan = task.allocator(Budget(latency_ms=ms)).by_scores([np.arange(10.0)])
        assert task.network.cost(plan).latency_ms <= ms
    with pytest.raises(
        InfeasibleBudgetError, match=r"smallest reachable 1\.4 .*Latency was minimised by changing one unit at a time"
    ):
        task.allocator(Budget(latency_ms=1.3))


def test_global_scores_rank_across_groups_and_local_scores_within():
    task = three_layers()
    low, high = np.full(12, 0.1) + np.arange(12) * 1e-3, np.full(20, 0.9) + np.arange(20) * 1e-3
    everywhere = task.allocator(Budget(params="70%")).by_scores([low, high], "global").widths(task.network.space)
    within = task.allocator(Budget(params="70%")).by_scores([low, high], "local").widths(task.network.space)
    assert everywhere[0] < 12
    assert everywhere[1] == 20
    assert abs(within[0] / 12 - within[1] / 20) < 0.1


def test_equal_ratio():
    task = three_layers()
    widths = task.allocator(Budget(params="50%")).by_ratio([np.zeros(12), np.zeros(20)]).widths(task.network.space)
    assert abs(widths[0] / 12 - widths[1] / 20) < 0.1


def test_rules_of_thumb():
    sizes = (4, 40, 40, 40, 3)
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    task = PruneTask(trace(nn.Sequential(*layers[:-1]), torch.randn(2, 4)))

    def widths(budget, **options):
        plan = create_method("uniform", options).propose(task, Budget(params=budget), Rng(0)).plan
        return plan.widths(task.network.space).tolist()

    up, down = widths("40%", tilt=1.0), widths("40%", tilt=-1.0)
    ratio = up[1] / 40
    assert up[0] == pytest.approx(40 * ratio**2, abs=1) and up[2] == pytest.approx(40 * ratio**0.5, abs=1)
    assert down[0] > down[1] > down[2]
    first, second, last = widths("40%", last_whole=True)
    assert last == 40 and first == second < widths("40%")[0]
    assert widths("2%", last_whole=True)[2] < 40  # it gives way where the others are at their smallest
    with pytest.raises(ConfigError, match=r"uniform\.tilt"):
        create_method("uniform", {"tilt": "up"})
    with pytest.raises(ConfigError, match="last_whole"):
        create_method("uniform", {"last_whole": "yes"})


@pytest.mark.parametrize("share", range(20, 100, 7))
def test_groups_of_one_width_stay_alike_unless_left_overs_are_asked_for(share):
    torch.manual_seed(0)
    sizes = (4, 16, 16, 16, 24, 3)
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    task = PruneTask(trace(nn.Sequential(*layers[:-1]), torch.randn(2, 4)))
    budget = Budget(params=f"{share}%")
    plans = [create_method("uniform", {"fill": fill}).propose(task, budget, Rng(0)).plan for fill in (False, True)]
    plain, filled = (plan.widths(task.network.space) for plan in plans)
    assert len(set(plain[:3])) == 1 and (plain <= filled).all()
    wider_by_one = (plain + 1) / task.network.space.widths
    assert wider_by_one.min() > (plain / task.network.space.widths).max()  # one ratio, rounded down
    next_common = plain + (wider_by_one == wider_by_one.min())
    assert task.network.cost(next_common).params > task.network.cost().params * share / 100
    assert create_method("uniform").propose(task, budget, Rng(0)).plan == plans[0]


@given(st.integers(20, 99), st.sampled_from([1, 2, 4, 5, 8]), st.integers(1, 6), st.randoms(use_true_random=False))
def test_any_budget_is_met_with_less_than_one_step_left(percent, round_to, min_keep, random):
    task = PruneTask(NETWORK, constraints=Constraints(round_to=round_to, min_keep=min_keep))
    try:
        allocator = task.allocator(Budget(params=f"{percent}%"))
    except InfeasibleBudgetError as error:
        assert error.smallest["params"] > NETWORK.cost().params * percent / 100
        return
    scores = [np.array([random.random() for _ in range(g.width)]) for g in NETWORK.space]
    widths = allocator.by_scores(scores).widths(NETWORK.space)
    assert NETWORK.cost(widths).params <= NETWORK.cost().params * percent / 100
    for g, unit in enumerate(allocator.units):
        levels = unit.levels[:, 0]
        assert widths[g] in levels
        if widths[g] < levels[-1]:
            more = widths.copy()
            more[g] = levels[levels > widths[g]][0]
            assert NETWORK.cost(more).params > NETWORK.cost().params * percent / 100


NETWORK = three_layers().network


def test_patterns_that_match_nothing_name_the_closest():
    network = three_layers().network
    for constraints in (Constraints(ignore=("layr.2",)), Constraints(ratios={"O": 0.5})):
        with pytest.raises(PlanError, match="matches no group"):
            PruneTask(network, constraints=constraints).allocator(Budget(params="50%"))
    units = PruneTask(network, constraints=Constraints(ignore=("0",))).allocator(Budget(params="90%")).units
    assert [len(u.levels) for u in units] == [1, 20]


def test_an_ignored_layer_keeps_its_input_width_too():
    with pytest.raises(InfeasibleBudgetError, match=r"100\.00%"):
        PruneTask(three_layers().network, constraints=Constraints(ignore=("2",))).allocator(Budget(params="50%"))


@pytest.mark.parametrize("text", ["macs", "macs=", "macs=-1", "macs=0%", "speed=3", "macs=fast", "macs=inf", ""])
def test_budgets_that_make_no_sense(text):
    with pytest.raises(ConfigError):
        Budget.parse(text)


@pytest.mark.parametrize(
    "options", [{"round_to": 2.5}, {"min_keep": -1}, {"min_keep": {"a": 0.5}}, {"ratios": {"a": "half"}}]
)
def test_constraints_that_make_no_sense(options):
    with pytest.raises(ConfigError, match="number"):
        Constraints(**options)


def test_budget_text_and_mappings():
    assert Budget.parse("macs=50%, params=1e6") == Budget(macs="50%", params="1e6")
    assert Budget.parse({"macs": 5}).bounds(NETWORK.cost()) == {"macs": 5.0}
    assert Budget(params="50%").bounds(NETWORK.cost()) == {"params": NETWORK.cost().params / 2}


def test_plan_json_round_trip():
    plan = Plan({"a": (0, 2), "b": (1,)})
    assert Plan.from_dict(plan.to_dict()) == plan


def test_several_budgets_hold_at_once():
    network = three_layers().network
    task = PruneTask(network)
    budget = Budget(macs="60%", params="50%", memory_mb="90%")
    cost = network.cost(task.allocator(budget).by_ratio([np.zeros(12), np.zeros(20)]))
    full = network.cost()
    assert cost.macs <= 0.6 * full.macs
    assert cost.params <= 0.5 * full.params
    assert cost.memory_mb <= 0.9 * full.memory_mb
