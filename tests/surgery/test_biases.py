"""`add_biases`: the same function, with something for compensation to move."""

import pytest
import torch
from torch import nn

import metaprune as mp
from metaprune.core.errors import ConfigError

X = torch.randn(4, 3, 8, 8)


class Sample(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.narrow = nn.Conv2d(16, 6, 1, bias=False)
        self.wide = nn.Linear(6, 8, bias=False)
        self.head = nn.Linear(8, 8, bias=False)

    def forward(self, x):
        return self.head(self.wide(self.narrow(self.conv(x).relu()).mean((2, 3))))


def test_the_copy_computes_the_same_and_the_model_stays():
    model = Sample().double()
    model.narrow.weight.requires_grad_(False)
    copied = mp.add_biases(model, only=("narrow", "w*"))
    assert torch.equal(copied(X.double()), model(X.double()))
    assert model.narrow.bias is None and copied.head.bias is None
    assert copied.narrow.bias.dtype == torch.float64 and not copied.narrow.bias.requires_grad
    assert copied.wide.bias.shape == (8,) and copied.wide.bias.requires_grad


def test_tied_heads_stay_and_unknown_layers_are_named():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 2, bias=False))
    model[1].weight = model[0].weight
    copied = mp.add_biases(model)
    assert copied[0].bias is None and copied[1].bias is None and copied[2].bias is not None
    assert copied[1].weight is copied[0].weight
    with pytest.raises(ConfigError, match=r"'narow' matches no layer without a bias\. Did you mean 'narrow'"):
        mp.add_biases(Sample(), only=("narow",))


def test_a_weight_that_is_computed_is_no_tied_one():
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 8, bias=False)), nn.Linear(8, 2))
    copied, x = mp.add_biases(model, only=("0",)), torch.randn(3, 4)
    assert copied[0].bias is not None and torch.equal(copied(x), model(x))


def test_compensation_moves_it_and_the_cut_is_proved():
    """Where dropped channels have a mean, only a bias can make up for it."""
    torch.manual_seed(0)
    model, inputs = Sample(), torch.randn(256, 3, 8, 8)
    data = mp.as_data((torch.utils.data.TensorDataset(inputs, torch.zeros(256, dtype=torch.long)),) * 2, num_classes=8)
    errors = []
    for given in (model, mp.add_biases(model, only=("narrow",))):
        result = mp.prune(
            given, X, budget="macs=60%", data=data, method="magnitude", only=["conv"], compensate="bias", progress=False
        )
        errors.append((result.model(inputs) - model(inputs)).square().mean())
    assert result.model.narrow.bias.abs().max() > 0
    assert errors[1] < 0.7 * errors[0]
