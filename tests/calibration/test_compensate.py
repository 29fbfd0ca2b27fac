"""Weights solved anew after a cut: nothing changes without a cut, the proof holds, and networks get better."""

import pytest
import torch
from sample_networks import SHARED, build
from torch import nn

import metaprune as mp
from metaprune.calibration.batches import calibration_batches
from metaprune.calibration.compensate import compensate
from metaprune.core.errors import ConfigError, DataError, NoEffectWarning
from metaprune.protocol.method import PruneTask
from metaprune.protocol.registry import create_method
from metaprune.testing.method_suite import small_data, small_network
from metaprune.testing.oracles import random_plan
from metaprune.train.evaluate import evaluate

EXAMPLE = torch.zeros(2, 1, 28, 28)


def calls(x, batches=8):
    return [((part,), {}) for part in x.chunk(batches)]


def images(network, samples=96):
    return calibration_batches(network, small_data().train, samples, mp.Rng(0))


@pytest.mark.parametrize("kind", ["bias", "least-squares"])
def test_an_uncut_network_stays_as_it_is(kind):
    network = mp.trace(small_network("cnn"), EXAMPLE)
    found = compensate(network, mp.Plan(), images(network), kind=kind, rng=mp.Rng(0))
    assert all(layer["ridge"] is None for layer in found.layers.values())
    for name, tensor in found.weights.items():
        torch.testing.assert_close(tensor, network.tensors[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["cnn", "transformer"])
def test_the_proof_holds_and_no_layer_gets_worse(kind):
    network = mp.trace(small_network(kind), EXAMPLE)
    plan = random_plan(network.space, 0.6, seed=1)
    found = compensate(network, plan, images(network), kind="least-squares", rng=mp.Rng(0))
    assert mp.cut(network, plan, weights=found.weights).error < 1e-9
    assert all(layer["after"] <= layer["before"] for layer in found.layers.values())
    assert any(layer["ridge"] for layer in found.layers.values()) and not found.left
    assert found.seconds > 0 and found.bytes > 0 and found.samples == 96


@pytest.mark.parametrize("name", ["mobilenet_v2", "tv_shufflenet", "resnet20_B"])
def test_the_proof_holds_for_depthwise_and_grouped_convolutions(name):
    model, (x,), _ = build(name)
    network = mp.trace(model, x)
    plan = random_plan(network.space, 0.7, seed=1)
    batches = calls(torch.randn(16, *x.shape[1:], generator=torch.Generator().manual_seed(0)))
    found = compensate(network, plan, batches, kind="least-squares", rng=mp.Rng(0))
    assert mp.cut(network, plan, weights=found.weights).error < 1e-9


class Doubled(nn.Module):
    """Every second hidden channel is a copy; the second layer ends in a sum with a shortcut."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1), nn.Linear(3, 4)
        with torch.no_grad():
            self.a.weight[1::2], self.a.bias[1::2] = self.a.weight[::2], self.a.bias[::2]

    def forward(self, x):
        return self.head((x + self.b(self.a(x).relu())).mean((2, 3)))


def test_copies_of_channels_are_made_up_for():
    torch.manual_seed(0)
    network = mp.trace(Doubled().eval(), torch.zeros(2, 3, 8, 8))
    plan, x = mp.Plan({network.space.groups[0].name: (0, 2, 4, 6)}), torch.randn(64, 3, 8, 8)
    found = compensate(network, plan, calls(x), kind="least-squares", rng=mp.Rng(0))
    layer = found.layers["b.weight"]
    assert layer["after"] < 1e-4 < 0.01 * layer["before"]
    with torch.no_grad():
        dense, errors = network.run(x), []
        for weights in (None, found.weights):
            cut = mp.cut(network, plan, weights=weights).model
            errors.append(float((cut(x) - dense).square().mean()))
    assert errors[1] < 0.01 * errors[0]


class Decoder(nn.Module):
    """Every second channel is a copy of the one before; a transposed convolution reads them."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 5, 3, stride=2, padding=1)
        with torch.no_grad():
            self.a.weight[1::2], self.a.bias[1::2] = self.a.weight[::2], self.a.bias[::2]

    def forward(self, x):
        return self.b(self.a(x).relu())


class Recurrent(nn.Module):
    """The same, and a recurrent layer of two directions reads them."""

    def __init__(self, kind, bias):
        super().__init__()
        self.a, self.r = nn.Linear(3, 8), kind(8, 6, bidirectional=True, num_layers=2, bias=bias, batch_first=True)
        self.head = nn.Linear(12, 2)
        with torch.no_grad():
            self.a.weight[1::2], self.a.bias[1::2] = self.a.weight[::2], self.a.bias[::2]

    def forward(self, x):
        return self.head(self.r(self.a(x).relu())[0])


@pytest.mark.parametrize(
    ("make", "shape", "weights"),
    [
        (Decoder, (3, 6, 6), ["b.weight"]),
        (lambda: Recurrent(nn.LSTM, True), (5, 3), ["r.weight_ih_l0", "r.weight_ih_l0_reverse"]),
        (lambda: Recurrent(nn.GRU, False), (5, 3), ["r.weight_ih_l0", "r.weight_ih_l0_reverse"]),
    ],
)
def test_transposed_and_recurrent_readers_make_up_for_copies(make, shape, weights):
    torch.manual_seed(0)
    network = mp.trace(make().eval(), torch.zeros(2, *shape))
    plan, x = mp.Plan({network.space.groups[0].name: (0, 2, 4, 6)}), torch.randn(64, *shape)
    found = compensate(network, plan, calls(x), kind="least-squares", rng=mp.Rng(0))
    for name in weights:
        assert found.layers[name]["after"] < 1e-3 < 0.1 * found.layers[name]["before"]
    with torch.no_grad():
        dense = network.run(x)
        cut = [mp.cut(network, plan, weights=w).model(x) for w in (None, found.weights)]
    errors = [float((c - dense).square().mean()) for c in cut]
    assert errors[1] < 0.01 * errors[0]


def test_dead_inputs_leave_the_weights():
    model = Doubled().eval()
    with torch.no_grad():
        model.a.weight.zero_()
        model.a.bias.fill_(-1)
    network = mp.trace(model, torch.zeros(2, 3, 8, 8))
    plan = mp.Plan({network.space.groups[0].name: (0, 1)})
    found = compensate(network, plan, calls(torch.randn(32, 3, 8, 8)), kind="least-squares", rng=mp.Rng(0))
    assert all(t.isfinite().all() for t in found.weights.values())
    assert found.layers["b.weight"]["ridge"] is None


@pytest.mark.slow
def test_a_trained_network_keeps_more():
    model, *_ = build("shared_resnet20")
    data = mp.load_data(f"npz:{SHARED / 'cifar10_jpeg.npz'}", limit=1000)
    network, test = mp.trace(model, torch.zeros(2, 3, 32, 32)), data.test.take(400)
    plan = create_method("uniform").propose(PruneTask(network), mp.Budget(macs="50%"), mp.Rng(0)).plan
    batches = calibration_batches(network, data.train, 320, mp.Rng(0))
    accuracy = {"none": evaluate(mp.cut(network, plan).model, test)["accuracy"]}
    for kind in ("bias", "least-squares"):
        weights = compensate(network, plan, batches, kind=kind, rng=mp.Rng(0)).weights
        accuracy[kind] = evaluate(mp.cut(network, plan, weights=weights).model, test)["accuracy"]
    assert accuracy["bias"] > accuracy["none"] + 0.1
    assert accuracy["least-squares"] > accuracy["bias"] + 0.15


def test_the_record_says_what_was_done_and_replays():
    model = small_network("cnn")
    result = mp.prune(model, EXAMPLE, budget="macs=50%", data=small_data(), compensate="least-squares")
    record = result.record
    assert record["compensate"] == "least-squares" and record["seconds"]["compensate"] > 0
    assert set(record["compensation"]) == {"layers", "left", "samples", "seconds", "bytes"}
    again = mp.replay(record, model, EXAMPLE, data=small_data())
    weights = again.model.state_dict()
    assert all(torch.equal(t, weights[n]) for n, t in result.model.state_dict().items())


def test_what_cannot_be_compensated_is_told():
    model = small_network("cnn")
    with pytest.raises(ConfigError, match="compensate='bias' needs data"):
        mp.prune(model, EXAMPLE, budget="macs=50%", compensate="bias")
    with pytest.raises(ConfigError, match="compensate"):
        mp.prune(model, EXAMPLE, budget="macs=50%", data=small_data(), compensate="least")
    with pytest.raises(DataError, match="too few"):
        mp.prune(model, EXAMPLE, budget="macs=50%", data=small_data(n=2), compensate="bias")
    with pytest.warns(NoEffectWarning, match="masks of single weights"):
        mp.prune(
            model, EXAMPLE, budget="nonzero=50%", method="weight_masks", data=small_data(), compensate="least-squares"
        )
