"""Costs at widths between the whole ones: exact where the widths are whole, with the gradient of a channel."""

import numpy as np
import pytest
import torch

from metaprune.core.errors import NotAvailableError
from metaprune.cost.soft import SoftCost
from metaprune.testing.method_suite import small_network
from metaprune.tracing import trace


def network(kind="cnn"):
    return trace(small_network(kind), torch.zeros(2, 1, 28, 28))


@pytest.mark.parametrize("kind", ["cnn", "transformer"])
@pytest.mark.parametrize("metric", ["macs", "params", "memory_mb"])
def test_soft_cost_is_the_cost_at_whole_widths(kind, metric):
    net = network(kind)
    soft, draw = SoftCost(net.cost_model(), metric), np.random.default_rng(0)
    assert float(soft(torch.from_numpy(net.space.widths.astype(float)))) == pytest.approx(1.0, rel=1e-9)
    for _ in range(5):
        widths = draw.integers(1, net.space.widths + 1)
        found = soft(torch.from_numpy(widths.astype(float)))
        assert float(found) == pytest.approx(net.cost(widths)[metric] / net.cost()[metric], rel=1e-9)


def test_milliseconds_need_a_table_and_are_its_predictions():
    net = network()
    with pytest.raises(NotAvailableError, match="metaprune latency"):
        SoftCost(net.cost_model(), "latency_ms")
    net = net.with_latency(lambda widths: 1.0 + 0.01 * widths.sum(axis=1))
    soft = SoftCost(net.cost_model(), "latency_ms")
    widths = torch.from_numpy(net.space.widths / 2.0).requires_grad_()
    found = soft(widths)
    found.backward()
    assert found.item() == pytest.approx((1 + 0.005 * net.space.widths.sum()) / (1 + 0.01 * net.space.widths.sum()))
    assert widths.grad.tolist() == pytest.approx([0.01 / soft.full] * len(net.space))


@pytest.mark.parametrize("metric", ["macs", "params", "memory_mb"])
def test_soft_cost_has_the_gradient_of_a_channel(metric):
    net = network()
    middle = net.space.widths // 2
    widths = torch.from_numpy(middle.astype(float)).requires_grad_()
    SoftCost(net.cost_model(), metric)(widths).backward()
    for g in range(len(net.space)):
        up, down = middle.copy(), middle.copy()
        up[g], down[g] = up[g] + 1, down[g] - 1
        change = (net.cost(up)[metric] - net.cost(down)[metric]) / 2 / net.cost()[metric]
        assert float(widths.grad[g]) == pytest.approx(change, rel=1e-6, abs=1e-12)
