"""A network is analysed on the inputs that the user gave; what is no batch is not cut to two."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import metaprune as mp
from metaprune.core.errors import FixedBatchWarning
from metaprune.testing import assert_cut_equals_mask


class Sequence(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.enter, self.layer, self.out = nn.Linear(6, 12), kind(12, 16, **options), nn.Linear(16, 3)

    def forward(self, x):
        return self.out(self.layer(self.enter(x))[0])


class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3), nn.Linear(16, 2)

    def forward(self, images, pairs):
        features = torch.relu(self.conv(images)).mean((2, 3))
        return self.out(torch.cat([features[pairs[:, 0]], features[pairs[:, 1]]], 1))


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 2)

    def forward(self, x):
        return self.out(torch.relu(self.conv(x)).reshape(2, -1))


def counted(model, *args):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*args)
    return counter.get_total_flops() // 2


ENCODER = nn.TransformerEncoderLayer(16, 2, 32).eval()


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])  # oneDNN hides the products of an LSTM from the counter
def test_time_is_no_batch(kind):
    model, x = Sequence(kind).eval(), torch.randn(7, 4, 6)
    with pytest.warns(FixedBatchWarning, match="dimension 0 of the inputs is (no batch|fixed at 7).*batch_dim="):
        network = mp.trace(model, x)
    assert network.cost().macs == network.cost(batch=8).macs == counted(model, x)
    assert network.notes[0].startswith("dimension 0 of the inputs is") and network.captured.example[0][0].shape == (
        7,
        4,
        6,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", FixedBatchWarning)
        network = mp.trace(model, x, batch_dim=1)
    assert network.cost(batch=4).macs == counted(model, x) == 4 * network.cost().macs


def test_attention_over_dimension_0():
    x = torch.randn(5, 3, 16)
    with pytest.warns(FixedBatchWarning):
        assert mp.trace(ENCODER, x).cost().macs == 3 * mp.trace(ENCODER, x, batch_dim=1).cost().macs


def test_indices_into_another_input():
    args = (torch.randn(4, 3, 8, 8), torch.tensor([[0, 1], [2, 3], [3, 0]]))
    network = mp.trace(Pairs().eval(), args)
    assert network.captured.varies and network.captured.example[0][0].shape[0] == 4
    assert mp.prune(Pairs().eval(), args, budget="macs=60%", progress=False).pruned.error <= 1e-9


def test_a_fixed_batch_is_said_and_priced():
    with pytest.warns(FixedBatchWarning, match="dimension 0 of the inputs is fixed at 2"):
        network = mp.trace(Fixed().eval(), torch.randn(2, 3, 8, 8))
    assert network.cost().macs == network.cost(batch=8).macs == counted(Fixed(), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_samples_are_a_batch(batch):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = mp.trace(model, torch.zeros(batch, 3, 8, 8))
    assert network.cost(batch=2).macs == 2 * network.cost().macs
    assert network.captured.example[0][0].shape[0] == 2


def test_inputs_are_not_written_into():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            x.mul_(2)
            return self.b(self.a(x).relu())

    x = torch.randn(2, 8)
    before = x.clone()
    assert mp.prune(Writes(), x, budget="params=60%", progress=False).pruned.error <= 1e-9
    assert torch.equal(x, before)


# ------------------------------------------------------------------------------- sizes that depend on values


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.b(torch.relu(self.a(x))[x.sum(-1) > 0])


class Chosen(Masked):
    def forward(self, x):
        return self.b(torch.relu(self.a(x)).index_select(0, torch.nonzero(x[:, 0] > 0).squeeze(-1)))


class Dynamic(nn.Module):
    """Convolution with the batch as groups (CondConv)."""

    def __init__(self):
        super().__init__()
        self.conv, self.route, self.out = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Conv2d(8, 4, 1)
        self.experts = nn.Parameter(torch.randn(4, 8 * 8 * 9))

    def forward(self, x):
        y = self.conv(x)
        n = y.shape[0]
        weight = (self.route(y.mean((2, 3))).softmax(-1) @ self.experts).reshape(n * 8, 8, 3, 3)
        z = nn.functional.conv2d(y.reshape(1, n * 8, *y.shape[2:]), weight, groups=n, padding=1)
        return self.out(z.reshape(n, 8, *z.shape[2:]))


@pytest.mark.parametrize("kind", [Masked, Chosen])
def test_sizes_that_depend_on_values(kind):
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    assert [g.width for g in mp.trace(kind().eval(), x).space] == [16]
    assert_cut_equals_mask_but_for_macs(kind().eval(), x)


def assert_cut_equals_mask_but_for_macs(model, x):
    """How many rows a mask chooses is not in the costs of one sample."""
    result = mp.prune(model, x, budget="params=60%", method="random", progress=False)
    assert result.pruned.error <= 1e-9 and result.pruned.form == "module"


def test_sizes_are_read_off_copies():
    """The run that tells how many rows a mask chooses writes into nothing of the user's."""

    class Writes(Masked):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls.add_(1)
            x.add_(1)
            return super().forward(x)

    model, x = Writes().eval(), torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    mp.trace(model, x)
    assert torch.equal(x, before) and model.calls == 0


def test_kernels_of_single_samples_are_pruned_and_counted():
    model, x = Dynamic().eval(), torch.randn(2, 3, 8, 8)
    network = mp.trace(model, x)
    assert len(network.space) == 2 and network.cost(batch=2).macs == counted(model, x)
    assert_cut_equals_mask(model, x)


class Chained(nn.Module):
    """A product of matrices by an operator without a rule."""

    def __init__(self):
        super().__init__()
        self.inp, self.out = nn.Linear(8, 16), nn.Linear(16, 4)
        self.first, self.second = (nn.Parameter(torch.randn(16, 16)) for _ in range(2))

    def forward(self, x):
        return self.out(torch.linalg.multi_dot([self.inp(x), self.first, self.second]))


@pytest.mark.filterwarnings("ignore:operators without a rule")
def test_operators_without_a_rule_lock_and_cost_what_is_counted():
    model, x = Chained().eval(), torch.randn(2, 8)
    network = mp.trace(model, x)
    assert len(network.space) == 0 and network.cost(batch=2).macs == counted(model, x)
    (uncovered,) = network.uncovered
    assert f"its {uncovered.macs:,} MACs at the traced size are a constant" in network.explain()


def test_only_the_wanted_axis():
    """A sequence-first network with batch_dim is cut and proved as any other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_cut_equals_mask(Sequence(nn.GRU).eval(), torch.randn(7, 2, 6))
