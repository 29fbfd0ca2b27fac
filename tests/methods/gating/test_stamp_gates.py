"""Distributions of gates: what is drawn, what a KL costs, where they start."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metaprune.core.rng import Rng
from metaprune.methods.gating.distributions import GATES, Vib, concrete, kumaraswamy_kl, kumaraswamy_mean


@given(a=st.floats(0.3, 5), b=st.floats(0.3, 5), alpha=st.floats(0.01, 1.0))
@settings(max_examples=10, deadline=None)
def test_kl_and_mean_agree_with_monte_carlo(a, b, alpha):
    draw = torch.Generator().manual_seed(0)
    u = torch.rand(400_000, generator=draw, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    log_x = torch.log1p(-u.pow(1 / b)) / a
    log_q = np.log(a * b) + (a - 1) * log_x + (b - 1) * torch.log1p(-torch.exp(a * log_x)).clamp(min=-60)
    log_p = np.log(alpha) + (alpha - 1) * log_x
    estimate = log_q - log_p
    exact = kumaraswamy_kl(torch.tensor(a), torch.tensor(b), alpha)
    assert abs(float(exact) - float(estimate.mean())) < 6 * float(estimate.std()) / len(u) ** 0.5 + 1e-3
    assert float(exact) >= -1e-5
    mean = kumaraswamy_mean(torch.tensor(a), torch.tensor(b))
    assert abs(float(mean) - float(log_x.exp().mean())) < 3e-3


def test_relaxed_gates_become_bernoulli_draws():
    logits = torch.tensor([-2.0, 0.0, 1.5])
    with Rng(0).torch_global():
        hard = torch.stack([concrete(logits, 0.01) for _ in range(4000)])
    assert torch.allclose(hard.mean(dim=0), torch.sigmoid(logits), atol=0.03)
    assert ((hard < 0.01) | (hard > 0.99)).float().mean() > 0.9


@pytest.mark.parametrize("form", GATES.values())
def test_gates_start_at_the_asked_probability(form):
    raw = torch.tensor(form.start(0.8)).repeat(5, 1)
    assert torch.allclose(form([raw]).probabilities()[0], torch.full((5,), 0.8), atol=5e-3)


def test_information_bottleneck_gates_are_gaussian_scales():
    raw = torch.tensor([[1.0, -2.0], [0.1, 0.5]])
    with Rng(0).torch_global():
        drawn = torch.stack([Vib([raw]).draw(0.5)[0] for _ in range(20_000)])
    assert torch.allclose(drawn.mean(dim=0), raw[:, 0], atol=0.03)
    assert torch.allclose(drawn.var(dim=0).log(), raw[:, 1], atol=0.05)
    ratio = raw[:, 0] ** 2 / raw[:, 1].exp()
    assert float(Vib([raw]).kl()) == pytest.approx(float((1 + ratio).log().mean()) / 2, rel=1e-5)
