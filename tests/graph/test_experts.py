"""Experts of hand-written mixtures are pruned where positions only look rows up, and stay whole everywhere else."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import metaprune as mp
from metaprune.core.errors import PlanError
from metaprune.testing import assert_cut_equals_mask

EXPERTS, TAKEN, DIM, HIDDEN = 6, 2, 8, 10


class Mixture(nn.Module):
    """x [tokens, dim] -> the weighted sum of what `TAKEN` of `EXPERTS` small networks give; `dispatch` says how."""

    def __init__(self, dispatch, scores="softmax"):
        super().__init__()
        torch.manual_seed(0)
        self.dispatch, self.scores = dispatch, scores
        self.inp, self.router, self.out = nn.Linear(5, DIM), nn.Linear(DIM, EXPERTS), nn.Linear(DIM, 3)
        self.up = nn.Parameter(torch.randn(EXPERTS, HIDDEN, DIM))
        self.down = nn.Parameter(torch.randn(EXPERTS, DIM, HIDDEN))
        self.register_buffer("correction", torch.randn(EXPERTS))
        self.scale = nn.Embedding(EXPERTS, DIM)

    def route(self, x):
        logits = self.router(x)
        if self.scores == "softmax":
            weights, chosen = logits.softmax(-1).topk(TAKEN, -1)
            return weights / weights.sum(-1, keepdim=True), chosen
        if self.scores == "sigmoid":
            scores = logits.sigmoid()
            chosen = (scores + self.correction).topk(TAKEN, -1)[1]
            return scores.gather(-1, chosen), chosen
        if self.scores == "grouped":
            best = logits.view(-1, 3, EXPERTS // 3).amax(-1).topk(2, -1)[1]
            open_ = torch.zeros_like(logits[:, :3]).scatter(1, best, 1.0).repeat_interleave(EXPERTS // 3, dim=1)
            weights, chosen = logits.masked_fill(open_ == 0, -1e9).topk(TAKEN, -1)
            return weights.sigmoid(), chosen
        weights, chosen = logits.topk(TAKEN, -1)
        return weights.softmax(-1), chosen

    def forward(self, x):
        x = self.inp(x)
        weights, chosen = self.route(x)
        return self.out(x + self.dispatch(self, x, weights, chosen))


def by_index(m, x, weights, chosen):
    flat = chosen.reshape(-1)
    h = (m.up[flat] @ x.repeat_interleave(TAKEN, 0).unsqueeze(-1)).relu()
    y = (m.down[flat] @ h).squeeze(-1) * weights.reshape(-1, 1)
    return y.view(-1, TAKEN, DIM).sum(1)


def by_two_dimensions(m, x, weights, chosen):
    h = torch.einsum("tkhd,td->tkh", m.up[chosen], x).relu()
    return torch.einsum("tkdh,tkh,tk->td", m.down[chosen], h, weights)


def by_scatter(m, x, weights, chosen):
    dense = torch.zeros_like(m.router(x)).scatter(1, chosen, weights)
    h = torch.einsum("td,ehd->teh", x, m.up).relu()
    return torch.einsum("teh,edh,te->td", h, m.down, dense)


def by_one_hot(m, x, weights, chosen):
    dense = (functional.one_hot(chosen, EXPERTS).to(weights.dtype) * weights.unsqueeze(-1)).sum(1)
    h = torch.einsum("td,ehd->teh", x, m.up).relu()
    return torch.einsum("teh,edh,te->td", h, m.down, dense)


def by_embedding(m, x, weights, chosen):
    return (m.scale(chosen) * x.unsqueeze(1) * weights.unsqueeze(-1)).sum(1)


def by_index_select(m, x, weights, chosen):
    flat = chosen.reshape(-1)
    y = m.scale.weight.index_select(0, flat).reshape(-1, TAKEN, DIM) * weights.unsqueeze(-1)
    return y.sum(1) * x


LOOK_UPS = (by_index, by_two_dimensions, by_scatter, by_one_hot, by_embedding, by_index_select)


def by_loop(m, x, weights, chosen):
    y = torch.zeros_like(x)
    for e in range(EXPERTS):
        share = (weights * (chosen == e)).sum(-1, keepdim=True)
        y = y + share * functional.linear(functional.linear(x, m.up[e]).relu(), m.down[e])
    return y


def by_comparison(m, x, weights, chosen):
    dense = (weights.unsqueeze(-1) * (chosen.unsqueeze(-1) == torch.arange(EXPERTS))).sum(1)
    return torch.einsum("te,ehd,td,edh->td", dense, m.up, x, m.down)


def by_arithmetic(m, x, weights, chosen):
    return by_index(m, x, weights, EXPERTS - 1 - chosen)


def by_the_first_half(m, x, weights, chosen):
    return by_index(m, x, weights, chosen // 2 * 2)


def by_a_larger_table(m, x, weights, chosen):
    return by_index(m, x, weights, chosen) + torch.cat([m.scale.weight, m.scale.weight])[chosen].sum(1)


def by_written_positions(m, x, weights, chosen):
    chosen.view(-1)[0] = 0
    return by_index(m, x, weights, chosen)


def by_value(m, x, weights, chosen):
    return by_index(m, x, weights * chosen, chosen)


OTHERS = (by_loop, by_comparison, by_arithmetic, by_the_first_half, by_a_larger_table, by_written_positions, by_value)
X = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))


def experts_of(network):
    return [g for g in network.space if g.role == "experts"]


@pytest.mark.parametrize("scores", ["softmax", "sigmoid", "after"])
@pytest.mark.parametrize("dispatch", LOOK_UPS, ids=lambda f: f.__name__)
def test_experts_go_where_positions_look_rows_up(dispatch, scores):
    model = Mixture(dispatch, scores)
    network = mp.trace(model, X)
    (group,) = experts_of(network)
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
    assert not experts_of(network)
    assert all("router" not in m.parameter or m.dim == 1 for g in network.space for m in g.members)
    assert_cut_equals_mask(model, X)


def test_positions_that_are_an_output_stay():
    class Returning(Mixture):
        def forward(self, x):
            x = self.inp(x)
            weights, chosen = self.route(x)
            return self.out(by_index(self, x, weights, chosen)), chosen

    network = mp.trace(Returning(by_index), X, free_outputs=True)
    assert not experts_of(network)
    reasons = {d.reason for d in network.space.locked if d.parameter == "up"}
    assert reasons == {"positions along it are a graph output"}


def test_groups_of_experts_stay_and_say_so():
    network = mp.trace(model := Mixture(by_index, "grouped"), X)
    assert not experts_of(network)
    assert {d.reason for d in network.space.locked if d.parameter == "up"} == {
        "a router chooses among groups of it first"
    }
    assert_cut_equals_mask(model, X)


def test_as_many_stay_as_a_router_takes():
    network = mp.trace(Mixture(by_index), X)
    (group,) = experts_of(network)
    with pytest.raises(
        PlanError, match="keeps 1 of 6 experts, and its router takes 2 for each token: keep"
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
