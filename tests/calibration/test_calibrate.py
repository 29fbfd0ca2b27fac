"""What a calibration records, against the activations themselves."""

import pytest
import torch
from torch import nn

import metaprune as mp
from metaprune.core.errors import DataError
from metaprune.testing.method_suite import small_data, small_network


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


def test_few_samples_are_told(network):
    data = small_data(n=3)
    with pytest.raises(DataError, match="3 samples are too few"):
        mp.calibrate(network, data)
