"""Costs against published totals, a hand-computed network, and themselves in bulk."""

import numpy as np
import pytest
import torch
from torch import nn

from metaprune.core.errors import PlanError
from metaprune.models import create
from metaprune.testing import counted_macs, random_plan, toy
from metaprune.tracing import trace
from metaprune.values import Plan

# MACs of conv and linear at the papers' input sizes, and parameters (MobileNetV2 0.75x: published as 209 M)
PUBLISHED = [
    ("resnet50", {}, 4_089_184_256, 25_557_032),
    ("mobilenet_v1", {}, 568_740_352, 4_231_976),
    ("mobilenet_v1", {"width": 0.75}, 325_400_448, 2_585_560),
    ("mobilenet_v1", {"width": 0.5}, 149_497_088, 1_331_592),
    ("mobilenet_v1", {"width": 0.25}, 41_030_272, 470_072),
    ("mobilenet_v2", {}, 300_774_272, 3_504_872),
    ("mobilenet_v2", {"width": 0.75}, 209_069_792, 2_636_424),
    ("mobilenet_v2", {"width": 0.5}, 97_131_840, 1_968_680),
    ("mobilenet_v2", {"width": 0.35}, 59_285_808, 1_677_128),
    ("resnet56", {}, 125_485_696, 853_018),
    ("resnet56", {"shortcut": "B"}, 125_747_840, 855_770),
    ("vgg19_bn", {}, 398_136_320, 20_035_018),
    ("resnet18_cifar", {}, 555_422_720, 11_173_962),
]


@pytest.mark.parametrize(("name", "options", "macs", "params"), PUBLISHED)
def test_published_totals(name, options, macs, params):
    model = create(f"zoo:{name}", **options).eval()
    x = torch.randn(1, *model.input_shape)
    cost = trace(model, x).cost()
    assert (cost.macs, cost.params) == (macs, params)
    assert counted_macs(model.to("meta"), x.to("meta")) == macs


@pytest.fixture(scope="module")
def resnet():
    return trace(create("zoo:resnet20").eval(), torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("name", ["concat", "grouped", "packed_qkv", "flatten", "squeeze_excite"])
def test_bulk_equals_one_by_one(name):
    made = toy(name)
    network = trace(made.model, made.args)
    draw = np.random.default_rng(0)
    widths = draw.integers(1, network.space.widths + 1, (3000, len(network.space)))
    bulk = network.cost(widths)
    for i in range(0, 3000, 61):
        assert network.cost(widths[i]).to_dict() == {k: v[i] for k, v in _columns(bulk).items()}
    assert bulk.macs.shape == (3000,)


def _columns(cost):
    columns = {k: getattr(cost, k) for k in cost if k != "memory_mb"}
    return {**columns, "memory_mb": cost.memory_mb}


def test_plan_and_widths_agree(resnet):
    for seed in range(5):
        plan = random_plan(resnet.space, 0.6, seed)
        assert resnet.cost(plan) == resnet.cost(plan.widths(resnet.space))
        named = {g.name: int(w) for g, w in zip(resnet.space, plan.widths(resnet.space), strict=True)}
        assert resnet.cost(plan) == resnet.cost(named)
        assert sum(resnet.cost_model().macs_by_node(resnet.survivors(plan)).values()) == resnet.cost(plan).macs


def test_no_plan_is_full_width(resnet):
    assert resnet.cost() == resnet.cost(Plan()) == resnet.cost(resnet.space.widths) == resnet.cost({})


def test_peak_by_hand():
    """3x8x8 input, conv to 4 channels, relu, conv to 2, mean: float32, one sample."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1), nn.Flatten()).eval()
    network = trace(model, torch.randn(2, 3, 8, 8))
    pixels = 8 * 8 * 4
    cost = network.cost()
    assert cost.peak_bytes == (3 + 4 + 4) * pixels  # input (the caller holds it), first conv, its relu
    assert cost.weight_bytes == 4 * cost.params == 4 * (4 * 27 + 4 + 2 * 36 + 2)
    assert cost.macs == 64 * (4 * 27 + 2 * 36)
    (group,) = network.space
    half = network.cost({group.name: 2})
    assert half.peak_bytes == (3 + 2 + 2) * pixels
    assert half.macs == 64 * (2 * 27 + 2 * 18)
    assert half.memory_mb == (half.weight_bytes + half.peak_bytes) / 1e6


def test_views_and_in_place_operators_own_no_memory():
    model = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Unflatten(1, (2, 4)), nn.Flatten(), nn.Linear(8, 3)
    )
    assert trace(model.eval(), torch.randn(2, 6)).cost().peak_bytes == (6 + 8 + 3) * 4


def test_tied_weights_are_counted_once():
    made = toy("tied")
    network = trace(made.model, made.args)
    assert network.cost().params == sum(p.numel() for p in made.model.parameters())
    assert network.cost().weight_bytes == 4 * network.cost().params


@pytest.mark.parametrize("name", ["residual", "concat", "packed_qkv", "flatten"])
def test_monotone_in_widths(name):
    made = toy(name)
    network = trace(made.model, made.args)
    draw = np.random.default_rng(1)
    small = draw.integers(1, network.space.widths + 1, (200, len(network.space)))
    large = draw.integers(small, network.space.widths + 1)
    a, b = network.cost(small), network.cost(large)
    for metric in ("macs", "params", "peak_bytes", "weight_bytes"):
        assert (getattr(a, metric) <= getattr(b, metric)).all()


def test_batch_scales(resnet):
    one, eight = resnet.cost(), resnet.cost(batch=8)
    assert (eight.macs, eight.peak_bytes) == (8 * one.macs, 8 * one.peak_bytes)
    assert (eight.params, eight.weight_bytes) == (one.params, one.weight_bytes)


def test_traced_batch_does_not_matter():
    made = toy("packed_qkv")
    costs = {trace(made.model, torch.randn(batch, 7, 6)).cost() for batch in (1, 2, 5)}
    assert len(costs) == 1


def test_products_of_one_group_with_itself_are_exact_by_plan():
    """An outer product of a layer with itself is quadratic in its width: by widths only an upper bound is known."""

    class Gram(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(64, 3)

        def forward(self, x):
            h = self.a(x)
            return self.b((h[:, :, None] * h[:, None, :]).flatten(1))

    network = trace(Gram().eval(), torch.randn(2, 6))
    plan = Plan({"a": (0, 3, 5)})
    assert network.cost(plan).macs == 6 * 3 + 9 * 3
    assert list(network.cost_model().macs_by_node(network.survivors(plan)).values()) == [6 * 3, 9 * 3]
    assert network.cost_model().inexact
    assert network.cost(plan.widths(network.space)).macs >= network.cost(plan).macs


@pytest.mark.parametrize("widths", [{"conv1": 0}, {"conv1": 17}, {"nothing": 3}, np.ones(3)])
def test_impossible_widths(resnet, widths):
    with pytest.raises(PlanError):
        resnet.cost(widths)
