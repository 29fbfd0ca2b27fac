"""Hypothesis writes small networks out of blocks; for each of them cut = mask and MACs = the dispatcher's count."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from metaprune.surgery import cut
from metaprune.testing import assert_cut_equals_mask, perturb
from metaprune.tracing import trace
from metaprune.values import Plan

pytestmark = pytest.mark.filterwarnings("ignore")
SIZE = 4


class Residual(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.a, self.n, self.b = (
            nn.Conv2d(width, inner, 3, padding=1),
            nn.BatchNorm2d(inner),
            nn.Conv2d(inner, width, 1),
        )

    def forward(self, x):
        return x + self.b(self.n(self.a(x)).relu())


class Dense(nn.Module):
    """Concatenation with what came in; the new channels first or last."""

    def __init__(self, width, inner, first):
        super().__init__()
        self.a, self.first = nn.Conv2d(width, inner, 1), first

    def forward(self, x):
        new = self.a(x).relu()
        return torch.cat([new, x] if self.first else [x, new], 1)


class Split(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.at = width // 2
        self.a = nn.Conv2d(width - self.at, inner, 3, padding=1)

    def forward(self, x):
        left, right = x.split([self.at, x.shape[1] - self.at], 1)
        return torch.cat([self.a(right).relu(), left], 1)


class Shuffle(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.groups = groups

    def forward(self, x):
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Attention(nn.Module):
    def __init__(self, width, heads, head_dim):
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * heads * head_dim)
        self.out = nn.Linear(heads * head_dim, width)

    def forward(self, x):
        n, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(self.norm(tokens)).view(n, h * w, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]).transpose(1, 2).reshape(n, h * w, -1)
        return x + self.out(y).transpose(1, 2).reshape(n, c, h, w)


class Gate(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.a, self.b = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x):
        return x * self.b(self.a(x.mean((2, 3))).relu()).sigmoid()[:, :, None, None]


class Flatten(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.a, self.b = nn.Linear(width * SIZE * SIZE, inner), nn.Linear(inner, width)

    def forward(self, x):
        return x + self.b(self.a(x.flatten(1)))[:, :, None, None]


@st.composite
def networks(draw):
    width = draw(st.sampled_from([4, 6, 8, 12]))
    layers = [nn.Conv2d(3, width, 3, padding=1)]
    inner = st.sampled_from([2, 4, 6, 8])
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(
            st.sampled_from(
                ["residual", "dense", "split", "grouped", "shuffle", "attention", "gate", "flatten", "norm"]
            )
        )
        n = draw(inner)
        groups = draw(st.sampled_from([g for g in (2, 3, 4, width) if width % g == 0]))
        if kind == "dense":
            layers.append(Dense(width, n, draw(st.booleans())))
            width += n
        elif kind == "split":
            layers.append(Split(width, n))
            width = n + width // 2
        elif kind == "grouped":
            layers.append(nn.Conv2d(width, groups * n, 3, padding=1, groups=groups))
            width = groups * n
        else:
            layers.append(
                {
                    "residual": lambda w=width, n=n: Residual(w, n),
                    "shuffle": lambda g=groups: Shuffle(g),
                    "attention": lambda w=width, n=n: Attention(w, 2, n),
                    "gate": lambda w=width, n=n: Gate(w, n),
                    "flatten": lambda w=width, n=n: Flatten(w, n),
                    "norm": lambda w=width, g=groups: nn.GroupNorm(g, w),
                }[kind]()
            )
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


@pytest.mark.slow
@settings(max_examples=40)
@given(networks(), st.integers(0, 2**16), st.sampled_from([0.2, 0.5, 0.8]))
def test_cut_equals_mask(model, seed, keep):
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert_cut_equals_mask(perturb(model, seed=seed).eval(), (x,), keep=keep, seeds=(seed,))


@pytest.mark.slow
@settings(max_examples=40)
@given(networks(), st.integers(0, 2**16), st.data())
def test_any_of_its_branches_go_whole(model, seed, data):
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    network = trace(perturb(model, seed=seed).eval(), x)
    gone = [b for b in network.branches if data.draw(st.booleans())]
    plan = Plan({name: () for b in gone for name in b.groups})
    for form in ("auto", "graph"):
        pruned = cut(network, plan, form=form)
        assert pruned.error is None or pruned.error <= 1e-9
        again, cost = trace(pruned.model, x).cost(), network.cost(plan)
        assert (again.macs, again.params) == (cost.macs, cost.params)
