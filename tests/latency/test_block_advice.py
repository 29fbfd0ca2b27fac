"""Widths that are slower than multiples of 8 are told of before the cut, by a table or what is known of a runtime."""

import numpy as np
import pytest
import torch
from torch import nn

import metaprune as mp
from metaprune.latency import build_table
from metaprune.latency.block_advice import block_advice
from metaprune.latency.segments import axis_values, segments_of
from metaprune.values import Constraints

X = torch.randn(2, 6)


@pytest.fixture(scope="module")
def model():
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 3)).eval()


@pytest.fixture(scope="module")
def network(model):
    return mp.trace(model, X)


def in_blocks(widths):
    """Every begun block of 8 costs 8, and one that is not full a whole block more."""
    return (8.0 * np.ceil(widths / 8) + 8.0 * (widths % 8 != 0)).sum(axis=1)


def told(network, predict_ms, runtime="eager", **constraints):
    return block_advice(network.with_latency(predict_ms), Constraints(**constraints), runtime)


def test_a_table_of_blocks_asks_for_multiples(network):
    line = told(network, in_blocks)
    assert "round_to=1 " in line and line.endswith("set round_to=8") and "\n" not in line
    assert "round_to=4 " in told(network, in_blocks, round_to=4)


@pytest.mark.parametrize(
    ("predict_ms", "constraints"),
    [
        (lambda widths: widths.sum(axis=1), {}),  # more channels, more time
        (lambda widths: 8.0 * np.ceil(widths / 8).sum(axis=1), {}),  # as long: nothing is lost
        (in_blocks, {"round_to": 8}),
        (in_blocks, {"round_to": 16}),
        (in_blocks, {"ignore": ("*",)}),
    ],
)
def test_nothing_where_nothing_is_lost(network, predict_ms, constraints):
    assert told(network, predict_ms, **constraints) == ""


def test_what_is_known_of_onnx_runtime_is_told_of_convolutions(network):
    convolution = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    convolving = mp.trace(convolution, torch.randn(1, 3, 8, 8))
    linear = lambda widths: widths.sum(axis=1)  # noqa: E731
    assert "ONNX Runtime" in told(convolving, linear, "onnxruntime", round_to=2)
    assert told(convolving, linear, "onnxruntime", round_to=4) == told(network, linear, "onnxruntime") == ""


class _Timer:
    few_widths = False

    def __init__(self, network):
        self.list, self.sizes = segments_of(network, 2)

    def segments(self, widths):
        sizes = self.sizes.of(widths)
        return np.stack([in_blocks(np.stack([axis_values(a, sizes) for a in s.axes], 1)) for s in self.list], 1)

    def whole(self, widths):
        return self.segments(widths).sum(axis=1)


def test_the_line_travels_into_the_record(model, network, tmp_path):
    build_table(network, (X,), samples=60, structures=2, timer=_Timer(network)).save(tmp_path / "t.json")
    asked = {"budget": "macs=50%", "latency_table": tmp_path / "t.json", "progress": False}
    with pytest.warns(mp.SlowWidthsWarning, match="by the latency table"):
        record = mp.prune(model, X, **asked).record
    assert any("round_to=8" in text for text in record["warnings"])
    assert mp.prune(model, X, round_to=8, **asked).record["warnings"] == []
