"""Recovery towards what the dense network computes inside."""

import copy
from dataclasses import replace

import pytest
import torch
from sample_networks import SHARED, build
from torch import nn

import metaprune as mp
from metaprune.core.errors import ConfigError
from metaprune.objective import Classification
from metaprune.recover.reconstruct import ReconstructionLoss, _Inside, matched_points
from metaprune.recover.run import recover
from metaprune.testing.method_suite import small_data, small_network

EXAMPLE = torch.zeros(2, 1, 28, 28)
SHORT = mp.RecoverConfig(kind="reconstruct", train=mp.TrainConfig(epochs=1, batch_size=32, lr=0.003))


class Residual(nn.Module):
    """A stream with two branches and a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.first = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.second = nn.Sequential(nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Linear(16, 8))

    def forward(self, x):
        x = self.stem(x)
        x = x + self.first(x)
        return self.head(torch.relu_(x + self.second(x)))


def values_of(network, plan, x):
    pruned = mp.cut(network, plan)
    points = matched_points(network)
    return pruned, points, _Inside(pruned, points).train()(x)


def test_streams_are_matched_behind_their_sums_and_plain_layers_each():
    network = mp.trace(Residual(), torch.zeros(2, 6))
    assert {p.weight for p in matched_points(network).values()} == {"first.2.weight", "second.2.weight"}
    plain = mp.trace(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(2, 6))
    assert {p.weight for p in matched_points(plain).values()} == {"0.weight", "2.weight"}


def test_the_loss_is_the_share_that_is_missing():
    with mp.Rng(0).torch_global():
        model, x = Residual().double(), torch.randn(32, 6, dtype=torch.float64)
    network = mp.trace(model, x[:2])
    pruned, points, inside = values_of(network, mp.Plan(), x)
    loss = ReconstructionLoss(Classification(), pruned, points)
    assert float(loss(inside, x, None)) == 0
    plan = mp.Plan({"stem": (0, 1, 2, 5), "first.0": (0, 3, 4)})
    pruned, points, inside = values_of(network, plan, x)
    h = torch.nn.functional.linear(x, model.stem.weight, model.stem.bias)
    dense = [h + model.first(h)]
    dense.append(dense[0] + model.second(dense[0]))
    kept = [value[:, [0, 1, 2, 5]] for value in dense]
    expected = [
        ((mine - wanted).square().mean() / wanted.var())
        for mine, wanted in zip(inside.values.values(), kept, strict=True)
    ]
    loss = ReconstructionLoss(Classification(), pruned, points)
    assert float(loss(inside, x, None)) == pytest.approx(float(sum(expected) / 2), rel=1e-6)
    assert float(loss(inside, x, None)) > 0


@pytest.mark.parametrize("kind", ["cnn", "transformer"])
def test_labels_are_not_read_and_the_form_does_not_matter(kind):
    data, model = small_data(), small_network(kind)
    other = copy.copy(data.train)
    other.labels = other.labels.flip(0)
    shuffled = replace(data, train=other)
    weights = []
    for given, form in ((data, "auto"), (shuffled, "auto"), (data, "graph")):
        result = mp.prune(
            model, EXAMPLE, budget="macs=60%", method="magnitude", data=given, recover=SHORT, form=form, progress=False
        )
        weights.append(result.model.state_dict())
        before = mp.cut(result.pruned.network, result.plan).model.state_dict()
        assert any(not torch.equal(t, before[n]) for n, t in weights[-1].items())
    for other in weights[1:]:
        for name, tensor in weights[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5)


def test_dropped_single_weights_stay_zero():
    result = mp.prune(
        small_network("cnn"), EXAMPLE, budget="nonzero=50%", method="weight_masks", data=small_data(),
        recover=SHORT, progress=False,
    )  # fmt: skip
    masks = result.pruned.network.at(result.plan).masks(result.pruned.masks)
    parameters = dict(result.model.named_parameters())
    assert masks and all(not parameters[name][~mask].any() for name, mask in masks.items())


def test_without_the_cut_it_says_so():
    with pytest.raises(ConfigError, match="use it in prune"):
        recover(small_network("cnn"), None, small_data(), "reconstruct", rng=mp.Rng(0), progress=False)


def test_a_trained_network_comes_back():
    model, *_ = build("shared_resnet20")
    data = mp.load_data(f"npz:{SHARED / 'cifar10_jpeg.npz'}", limit=1500)
    data = replace(data, test=data.test.take(400), val=data.val.take(50))
    recovery = mp.RecoverConfig(kind="reconstruct", train=mp.TrainConfig(epochs=2))
    result = mp.prune(
        model, torch.zeros(2, 3, 32, 32), budget="macs=60%", method="magnitude", data=data, recover=recovery,
        compensate="least-squares", progress=False,
    )  # fmt: skip
    quality = result.record["quality"]
    assert quality["recovered"]["accuracy"] > quality["cut"]["accuracy"] + 0.01
