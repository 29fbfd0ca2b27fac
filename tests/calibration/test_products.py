"""Products as matrices: the rows that are read, times the weight, are the operator's results."""

import pytest
import torch
from sample_networks import build
from torch import nn

from metaprune.calibration.products import Rows, find_products
from metaprune.tracing import trace


class Kinds(nn.Module):
    """Convolutions of all kinds."""

    def __init__(self):
        super().__init__()
        self.strided = nn.Conv2d(3, 8, (3, 5), stride=2, padding=(1, 2), dilation=(1, 2))
        self.grouped = nn.Conv2d(8, 12, 3, padding="same", groups=4)
        self.depthwise = nn.Conv2d(12, 24, 3, groups=12, bias=False)
        self.line = nn.Conv1d(24, 6, 4, padding=1)
        self.plain_up = nn.ConvTranspose1d(6, 5, 3)
        self.up = nn.ConvTranspose1d(5, 4, 4, stride=3, padding=2, output_padding=1, dilation=2)
        self.cropped = nn.ConvTranspose1d(4, 6, 2, stride=2, padding=3, bias=False)
        self.square = nn.ConvTranspose2d(3, 8, (2, 3), stride=(2, 1), padding=(0, 1))
        self.split = nn.ConvTranspose1d(6, 6, 3, groups=3)

    def forward(self, x):
        square = self.square(x).mean((1, 2, 3))[:, None]
        x = self.depthwise(self.grouped(self.strided(x)).relu()).relu()
        x = self.cropped(self.up(self.plain_up(self.line(x.flatten(2))).relu()).relu())
        return self.split(x).mean(-1) + square


def kinds():
    torch.manual_seed(0)
    return Kinds(), (torch.randn(2, 3, 24, 24),), {}


@pytest.mark.parametrize("name", ["kinds", "resnet20", "mobilenet_v2", "vit_micro", "bert_classifier", "tv_shufflenet"])
def test_rows_times_the_weight_are_the_results(name):
    model, args, kwargs = kinds() if name == "kinds" else build(name)
    network = trace(model.eval(), args, kwargs)
    products, left = find_products(network)
    generator, errors = torch.Generator().manual_seed(0), []

    def call(step, a, k):
        result = step.target(*a, **k)
        if (product := products.get(step.node.name)) is not None:
            rows = Rows.of(product, step, a, k)
            drawn = rows.draw(result, 40, generator)
            found, expected = rows.inputs(drawn) @ rows.matrix.mT, rows.outputs(result, drawn)
            if product.bias is not None:
                found = found + network.tensors[product.bias].reshape(rows.groups, 1, -1)
            errors.append(float((found - expected).abs().max() / expected.abs().max()))
        return result

    with torch.no_grad():
        network.program.run(network.at().program(), network.tensors, args, kwargs, call)
    assert len(errors) == len(products) > 3 and max(errors) < 1e-4
    assert left == ({"split.weight": "grouped transposed convolution"} if name == "kinds" else {})


def test_a_weight_that_is_used_twice_is_left_alone():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.inner(self.inner(x).relu()))

    products, left = find_products(trace(Twice().eval(), torch.randn(2, 8)))
    assert left == {"inner.weight": "used more than once"}
    assert [p.weight for p in products.values()] == ["head.weight"]
