"""Experts of hand-written mixtures are pruned where positions only look rows up, and stay whole everywhere else."""

import numpy as np
import pytest
import torch
from mixtures import EXPERTS, LOOK_UPS, OTHERS, TAKEN, Mixture, X, by_index, chosen_from, experts_of

import metaprune as mp
from metaprune.core.errors import PlanError
from metaprune.testing import assert_cut_equals_mask


@pytest.mark.parametrize("scores", ["softmax", "unscaled", "sigmoid", "after"])
@pytest.mark.parametrize("dispatch", LOOK_UPS, ids=lambda f: f.__name__)
def test_experts_go_where_positions_look_rows_up(dispatch, scores):
    model = Mixture(dispatch, scores)
    network = mp.trace(model, X)
    (group,) = chosen_from(network)
    assert (group.width, group.least) == (EXPERTS, TAKEN) and not network.uncovered
    assert ("router.weight", 0) in {(m.parameter, m.dim) for m in group.members}
    for keep in ([0, 5], [1, 2, 4], [0, 2, 3, 4, 5]):
        pruned = mp.cut(network, mp.Plan({group.name: tuple(keep)}))
        assert pruned.error is not None and pruned.error <= 1e-9
        small = pruned.model.get_parameter("router.weight")
        assert torch.equal(small, model.router.weight[keep])
    assert_cut_equals_mask(model, X)


def test_dropped_experts_are_what_a_router_without_them_would_choose():
    model = Mixture(by_index)
    network = mp.trace(model, X)
    keep = [0, 2, 3]
    small = mp.cut(network, mp.Plan({experts_of(network)[0].name: keep})).model
    model.router.bias.data[[1, 4, 5]] = -float("inf")
    assert torch.allclose(small(X), model(X), atol=1e-6)


@pytest.mark.parametrize("dispatch", OTHERS, ids=lambda f: f.__name__)
def test_experts_stay_where_anything_else_reads_positions(dispatch):
    network = mp.trace(model := Mixture(dispatch), X)
    assert not chosen_from(network)
    assert all("router" not in m.parameter or m.dim == 1 for g in network.space for m in g.members)
    assert_cut_equals_mask(model, X)


def test_positions_that_are_an_output_stay():
    class Returning(Mixture):
        def forward(self, x):
            x = self.inp(x)
            weights, chosen = self.route(x)
            return self.out(by_index(self, x, weights, chosen)), chosen

    network = mp.trace(Returning(by_index), X, free_outputs=True)
    assert not chosen_from(network)
    reasons = {d.reason for d in network.space.locked if d.parameter == "up"}
    assert reasons == {"positions along it are a graph output"}


def test_groups_of_experts_stay_and_say_so():
    network = mp.trace(model := Mixture(by_index, "grouped"), X)
    assert not chosen_from(network)
    assert {d.reason for d in network.space.locked if d.parameter == "up"} == {
        "a router chooses among groups of it first"
    }
    assert_cut_equals_mask(model, X)


def test_as_many_stay_as_a_router_takes():
    network = mp.trace(Mixture(by_index), X)
    (group,) = experts_of(network)
    with pytest.raises(
        PlanError, match="keeps 1 of 6 experts, and a topk of the model chooses among them: keep at least 2"
    ):
        mp.cut(network, mp.Plan({group.name: (3,)}))
    with pytest.raises(PlanError, match="min_keep of 'router:experts' is 1, and the router takes 2 experts: give 2"):
        mp.prune(network.model, X, budget="params=50%", min_keep={"router:experts": 1}, progress=False)
    least = mp.prune(network.model, X, budget="params=55%", method="random", only=["router:experts"], progress=False)
    assert least.plan.widths(network.space)[network.space.index[group.name]] >= TAKEN


def test_a_gate_of_zero_is_a_dropped_expert_and_one_changes_nothing():
    network = mp.trace(Mixture(by_index), X)
    (group,) = experts_of(network)
    keep = np.array([True, False, True, True, False, True])
    gates = [torch.ones(g.width) for g in network.space]
    tensors = dict(network.tensors)
    run = lambda: network.gated.run(tensors, gates, (X,), {})  # noqa: E731
    assert torch.allclose(run(), network.model(X), atol=1e-5)
    gates[network.space.index[group.name]] = torch.from_numpy(keep).float().requires_grad_()
    small = mp.cut(network, mp.Plan({group.name: np.flatnonzero(keep)})).model
    assert torch.allclose(run(), small(X), atol=1e-5)
    (gradient,) = torch.autograd.grad(run().square().sum(), gates[network.space.index[group.name]])
    assert gradient[torch.from_numpy(keep)].abs().sum() > 0
