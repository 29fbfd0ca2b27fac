"""What a router without the dropped experts chooses is what the reference says, in cases that -inf would not settle."""

import pytest
import torch
from mixtures import EXPERTS, Mixture, X, by_index, by_two_dimensions

import metaprune as mp


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
    torch.nn.init.zeros_(model.router.weight)
    torch.nn.init.zeros_(model.router.bias)
    network = mp.trace(model, X)
    for keep in ((3, 4, 5), (0, 5), (0, 1, 2, 4)):
        assert mp.cut(network, mp.Plan({"router": keep})).error <= 1e-9


def test_gates_that_leave_fewer_than_a_router_takes_give_numbers():
    network = mp.trace(Routed(softmax, by_index), X)
    gates = [torch.ones(g.width) for g in network.space]
    for left in (1, 0):
        gates[network.space.index["router"]] = (torch.arange(EXPERTS) < left).float()
        assert network.gated.run(dict(network.tensors), gates, (X,), {}).isfinite().all()
