"""What a router without the dropped experts chooses is what the reference says, in cases that -inf would not settle."""

import itertools
from dataclasses import replace

import pytest
import torch
from mixtures import DIM, EXPERTS, Mixture, X, by_embedding, by_index, by_index_select, by_two_dimensions
from torch import nn

import metaprune as mp
from metaprune.core.errors import PlanError
from metaprune.search.units import min_keep, units_of
from metaprune.testing import assert_cut_equals_mask


class Routed(Mixture):
    """A mixture whose `route` is a function of the model and its input."""

    def __init__(self, route, dispatch=by_two_dimensions):
        super().__init__(dispatch)
        self.route = lambda x: route(self, x)


def shares(m, x):
    """Sigmoid scores, divided by their sum: NaN where no expert is left."""
    weights, chosen = m.router(x).sigmoid().topk(2, -1)
    return weights / weights.sum(-1, keepdim=True), chosen


def gathered(m, x):
    scores = m.router(x).sigmoid()
    chosen = (scores + m.correction).topk(2, -1)[1]
    weights = scores.gather(1, chosen)
    return weights / weights.sum(-1, keepdim=True), chosen


def softmax(m, x):
    return m.router(x).softmax(-1).topk(2, -1)


def log_softmax(m, x):
    weights, chosen = m.router(x).log_softmax(-1).topk(2, -1)
    return weights.exp(), chosen


@pytest.mark.parametrize("route", [shares, gathered, softmax, log_softmax], ids=lambda f: f.__name__)
def test_a_mixture_is_dropped_whole(route):
    network = mp.trace(Routed(route), X)
    (branch,) = (b for b in network.branches if "router" in b.groups)
    pruned = mp.cut(network, mp.Plan(dict.fromkeys(branch.groups, ())))
    assert pruned.error is not None and pruned.error <= 1e-9
    model = network.model
    assert torch.allclose(pruned.model(X), model.out(model.inp(X)), atol=1e-6)


@pytest.mark.parametrize("options", [{"method": "depth"}, {"method": "magnitude", "min_keep": 0}])
def test_budgets_drop_mixtures_whole(options):
    samples = torch.utils.data.TensorDataset(torch.randn(32, 5), torch.zeros(32, 3))
    data = mp.as_data((samples, samples), objective="regression")
    result = mp.prune(Routed(softmax), X, budget="params=20%", data=data, progress=False, **options)
    assert result.plan.keep["router"] == () and result.pruned.error <= 1e-9


def scores_of_relu(m, x):
    weights, chosen = m.router(x).relu().topk(3, -1)
    return weights.softmax(-1), chosen


def closed_experts(m, x):
    closed = torch.tensor([0, 0, 1, 0, 1, 0]).bool()
    weights, chosen = m.router(x).masked_fill(closed, -torch.inf).topk(3, -1)
    return torch.ones_like(weights), chosen


@pytest.mark.parametrize("route", [scores_of_relu, closed_experts], ids=lambda f: f.__name__)
@pytest.mark.parametrize("keep", [(3, 4, 5), (1, 3, 4, 5), (0, 1, 2, 4)])
def test_ties_and_masks_of_the_model_end_as_in_the_cut_network(route, keep):
    network = mp.trace(Routed(route), X)
    pruned = mp.cut(network, mp.Plan({"router": keep}))
    assert pruned.error is not None and pruned.error <= 1e-9


def test_a_router_of_zeros_is_cut():
    model = Routed(softmax)
    nn.init.zeros_(model.router.weight)
    nn.init.zeros_(model.router.bias)
    network = mp.trace(model, X)
    for keep in ((3, 4, 5), (0, 5), (0, 1, 2, 4)):
        assert mp.cut(network, mp.Plan({"router": keep})).error <= 1e-9


def test_gates_that_leave_fewer_than_a_router_takes_give_numbers():
    network = mp.trace(Routed(softmax, by_index), X)
    gates = [torch.ones(g.width) for g in network.space]
    for left in (1, 0):
        gates[network.space.index["router"]] = (torch.arange(EXPERTS) < left).float()
        assert network.gated.run(dict(network.tensors), gates, (X,), {}).isfinite().all()


class TwoRouters(Routed):
    """Experts 0..2 are scored by one layer and 3..5 by another; `TAKEN_OF_ALL` of all six run."""

    def __init__(self):
        super().__init__(both)
        self.first, self.second = nn.Linear(DIM, 3), nn.Linear(DIM, 3)


def both(m, x):
    weights, chosen = torch.cat([m.first(x), m.second(x)], -1).topk(TAKEN_OF_ALL, -1)
    return weights.softmax(-1), chosen


TAKEN_OF_ALL = 4


def test_groups_of_one_choice_keep_their_share_of_it():
    network = mp.trace(TwoRouters(), X)
    assert [(g.width, g.least) for g in network.space if g.name in ("first", "second")] == [(3, 2)] * 2
    for first, second in itertools.product([(0, 1, 2), (0, 2), (1, 2)], repeat=2):
        assert mp.cut(network, mp.Plan({"first": first, "second": second})).error <= 1e-9
    with pytest.raises(PlanError, match="group 'first' keeps 1 of 3"):
        mp.cut(network, mp.Plan({"first": (0,)}))


def test_channels_outside_of_a_choice_are_a_group_of_their_own():
    def some(m, x):
        scores = m.router(x)
        weights, chosen = scores[:, :4].topk(3, -1)
        return weights * scores[:, 4:].sum(-1, keepdim=True), chosen

    model = Routed(some)
    model.up, model.down = (nn.Parameter(p.detach()[:4]) for p in (model.up, model.down))
    network = mp.trace(model, X)
    groups = [g for g in network.space if any(m.parameter == "router.weight" and m.dim == 0 for m in g.members)]
    assert sorted((g.width, g.least) for g in groups) == [(2, 1), (4, 3)]
    assert_cut_equals_mask(model, X)


def test_positions_that_are_written_where_they_point_stay():
    def same(m, x):
        weights, chosen = m.router(x).topk(2, -1)
        written = torch.zeros(len(x), EXPERTS, dtype=torch.long).scatter(1, chosen, chosen)
        return weights * written.sum(1, keepdim=True), chosen

    network = mp.trace(Routed(same), X)
    reasons = {d.reason for d in network.space.locked if d.parameter == "router.weight" and d.dim == 0}
    assert reasons == {"scatter (computes with positions along it)"}
    assert_cut_equals_mask(network.model, X)


def test_a_router_that_takes_more_in_training_keeps_as_many():
    def more(m, x):
        weights, chosen = m.router(x).topk(4 if m.training else 1, -1)
        return weights.softmax(-1), chosen

    network = mp.trace(model := Routed(more), X)
    assert network.space["router"].least == 4
    small = mp.cut(network, mp.Plan({"router": (0, 2, 3, 5)})).model
    assert small.eval()(X).shape == model.eval()(X).shape


def test_a_choice_of_all_drops_nothing_and_is_kept_whole():
    def everyone(m, x):
        weights, chosen = m.router(x).topk(EXPERTS, -1)
        return weights.softmax(-1), chosen

    network = mp.trace(Routed(everyone), X)
    assert network.space["router"].least == EXPERTS
    assert mp.cut(network, mp.Plan({"router": range(EXPERTS)})).error <= 1e-9


class Winners(nn.Module):
    """`WINNERS` of 32 channels pass: x [samples, 3, 6, 6] -> [samples, 4, 4, 4]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.out = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 4, 1)

    def forward(self, x):
        x = self.wide(x).relu()
        means = x.mean((2, 3))
        chosen = means.topk(WINNERS, 1).indices
        return self.out(x * torch.zeros_like(means).scatter(1, chosen, 1.0)[:, :, None, None])


WINNERS = 4
IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_winning_channels_are_channels():
    network = mp.trace(Winners(), IMAGES)
    (group,) = network.space
    assert (group.role, group.least) == ("hidden", WINNERS)
    result = mp.prune(Winners(), IMAGES, budget="params=70%", method="magnitude", round_to=8, progress=False)
    assert result.plan.widths(network.space).tolist() == [16]
    assert_cut_equals_mask(network.model, IMAGES)


@pytest.mark.parametrize("dispatch", [by_embedding, by_index_select], ids=lambda f: f.__name__)
def test_rows_that_are_no_matrices_are_channels(dispatch):
    assert mp.trace(Mixture(dispatch), X).space["router"].role == "hidden"


@pytest.mark.parametrize("patterns", [{"*": 1}, {"=router": 3, "*": 1}])
def test_a_floor_for_more_than_experts_leaves_them_what_the_router_takes(patterns):
    network = mp.trace(Mixture(by_index), X)
    constraints = mp.Constraints(min_keep=patterns)
    floor = {
        network.space.groups[int(u.groups[0])].name: int(u.levels[0, 0]) for u in units_of(network.space, constraints)
    }
    assert floor["router"] == patterns.get("=router", 2) and floor["inp"] == 1


def test_a_floor_of_everything_holds_where_experts_are_all():
    space = mp.trace(Mixture(by_index), X).space
    alone = replace(space, groups=(space["router"],), branches=())
    assert min_keep(alone, mp.Constraints(min_keep={"*": 1})).tolist() == [1]
    with pytest.raises(PlanError, match="give 2"):
        min_keep(space, mp.Constraints(min_keep={"=router": 1}))
    with pytest.raises(PlanError, match="give 2"):
        min_keep(space, mp.Constraints(min_keep={"router.weight": 1}))
