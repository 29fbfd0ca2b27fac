"""What a calibration records, against the activations themselves."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import metaprune as mp
from metaprune.calibration.batches import HELD_OUT, calibration_batches, judged_batches
from metaprune.core.errors import DataError
from metaprune.testing.method_suite import small_data, small_network
from metaprune.testing.oracles import assert_untouched, random_plan


@pytest.fixture(scope="module")
def network():
    return mp.trace(small_network("cnn"), torch.zeros(2, 1, 28, 28))


def test_moments_are_those_of_the_activations(network):
    calibration = mp.calibrate(network, small_data(), samples=48)
    seen = []
    last = [m for m in network.model.modules() if isinstance(m, nn.Linear)][-1]
    handle = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().double()))
    mp.calibrate(mp.trace(network.model, torch.zeros(2, 1, 28, 28)), small_data(), samples=48)
    batches = small_data().train.batches(12, rng=mp.Rng(0).child("calibrate", "samples"))
    seen.clear()
    with torch.no_grad():
        for _, (x, _) in zip(range(4), batches, strict=False):
            network.model(x)
    handle.remove()
    rows, name = torch.cat(seen), next(n for n, m in network.model.named_modules() if m is last)
    found = calibration.of_weight(f"{name}.weight")
    assert calibration.samples == found.rows == 48
    torch.testing.assert_close(found.mean, rows.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.variance, rows.var(0, correction=0), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.gram[0], rows.mT @ rows / 48, rtol=1e-4, atol=1e-6)


def test_memory_of_gram_matrices_is_bounded(network):
    whole, half = (mp.calibrate(network, small_data(), samples=16, gram_mb=mb) for mb in (64, 0.3))
    assert not whole.left and half.left and half.bytes < 0.35 * 2**20 < whole.bytes
    assert all("MB" in why for why in half.left.values())
    assert half.places.keys() == whole.places.keys()


@pytest.mark.parametrize("kind", ["cnn", "transformer"])
def test_every_consumer_is_recorded(kind):
    network = mp.trace(small_network(kind), torch.zeros(2, 1, 28, 28))
    calibration = mp.calibrate(network, small_data(), samples=16)
    assert set(network.gated.carriers) <= set(calibration.places)
    assert all(c.mean.isfinite().all() and (c.variance >= 0).all() for c in calibration.places.values())


@pytest.mark.parametrize("kind", ["cnn", "transformer"])
def test_at_a_plan_it_is_that_of_the_cut_network(kind):
    network = mp.trace(small_network(kind), torch.zeros(2, 1, 28, 28))
    plan = random_plan(network.space, 0.6, seed=2)
    cut = mp.trace(mp.cut(network, plan, form="graph").model, torch.zeros(2, 1, 28, 28))
    found, expected = (
        mp.calibrate(network, small_data(), samples=16, plan=plan),
        mp.calibrate(cut, small_data(), samples=16),
    )
    assert found.products.keys() == expected.products.keys() and found.products
    for name in found.products:
        for here, there in zip(*(vars(c.of_weight(name)).values() for c in (found, expected)), strict=True):
            torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-5)


def test_buffers_that_a_forward_writes_stay():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 2)
            self.register_buffer("sum", torch.zeros(6))

        def forward(self, x):
            x = self.first(x)
            self.sum.add_(x.detach().sum(0))
            return self.last(x)

    model = Counts().eval()
    samples = TensorDataset(torch.randn(16, 8), torch.zeros(16, dtype=torch.int64))
    network = mp.trace(model, torch.ones(2, 8))
    with assert_untouched(model):
        mp.calibrate(network, mp.as_data((samples, samples)))


def test_few_samples_are_told(network):
    data = small_data(n=3)
    with pytest.raises(DataError, match="3 samples are too few"):
        mp.calibrate(network, data)


@pytest.mark.parametrize("sizes", [(32,), (4, 1), (30, 3), (2, 2, 1)])
def test_few_large_batches_of_a_loader_are_parted(sizes):
    network = mp.trace(small_network("cnn"), torch.zeros(2, 1, 28, 28))
    samples = TensorDataset(torch.rand(sum(sizes), 1, 28, 28), torch.zeros(sum(sizes), dtype=torch.int64))
    indices = torch.arange(sum(sizes)).split(list(sizes))
    loader = DataLoader(samples, batch_sampler=[i.tolist() for i in indices])
    split = mp.as_data((loader, loader)).train
    batches = calibration_batches(network, split, 512, mp.Rng(0))
    assert len(batches) >= HELD_OUT
    assert sum(len(args[0]) for args, _ in batches) == sum(sizes)


@pytest.mark.parametrize("batch_size", [7, 16, 40, 64])
def test_what_judges_is_not_what_solves(network, batch_size):
    images = torch.arange(40.0)[:, None, None, None].expand(40, 1, 28, 28)
    loader = DataLoader(TensorDataset(images, torch.arange(40) % 10), batch_size)
    splits = [mp.as_data((loader, loader), num_classes=10).train, small_data().train.take(40)]
    for split in splits:
        (inputs, target), others = judged_batches(network, split, 16, 512, mp.Rng(0))
        solving = torch.cat([args[0] for args, _ in others])
        assert len(inputs) == len(target) and len(inputs) + len(solving) == 40
        rows = torch.cat([inputs, solving]).flatten(1)
        assert len(rows.unique(dim=0)) == 40
    with pytest.raises(DataError, match="too few to calibrate"):
        judged_batches(network, small_data().train.take(3), 16, 512, mp.Rng(0))
