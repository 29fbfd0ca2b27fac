"""Hand-written mixtures of experts: a router, and ways to dispatch tokens to what it chooses."""

import torch
from torch import nn
from torch.nn import functional

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
        if self.scores == "unscaled":  # as Qwen-MoE: weights do not add up to one
            return logits.softmax(-1).topk(TAKEN, -1)
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


def chosen_from(network):
    """List the groups of which some are chosen."""
    return [g for g in network.space if g.least > 1]


def experts_of(network):
    """List the groups of stacked matrices that a router chooses from."""
    return [g for g in network.space if g.role == "experts"]
