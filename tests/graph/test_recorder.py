"""The recorder: right on other batches and values, and what it cannot capture soundly it refuses."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import metaprune as mp
from metaprune.graph.capture import capture, untouched
from metaprune.graph.captured import Captured, module_of, op_name
from metaprune.graph.exported import captured_from
from metaprune.graph.exporting import export_program
from metaprune.models import create
from metaprune.surgery.verify import relative_error
from metaprune.testing.networks import Lambda
from metaprune.testing.oracles import assert_untouched


class Net(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 4)
        self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("ones", torch.ones(6))
        self.plain = torch.full((6,), 3.0)
        self.calls = 0
        self._forward = forward

    def forward(self, x):
        return self.last(self._forward(self, self.first(x), x))


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * 2


def _in_place(s, h, x):
    h[:, 0] = 0
    h[:, 1:3].mul_(2)
    return F.relu_(h)


def _autocast(s, h, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = s.first(h)
    return h.float()


def _without_grad(s, h, x):
    with torch.no_grad():
        return s.first(h)


def _remembers(s, h, x):
    s.cache = h
    return s.cache


def _counts(s, h, x):
    s.calls += 1
    return h * s.calls


RECORDED = {
    "where": lambda s, h, x: torch.where(h > 0, h, 0.1 * h),
    "in place": _in_place,
    "autocast": _autocast,
    "no_grad": _without_grad,
    ".data": lambda s, h, x: F.linear(h.data, s.first.weight.data, s.first.bias.detach()).data,
    "dropout": lambda s, h, x: s.drop(h),
    "noise": lambda s, h, x: h + 0 * torch.rand_like(h),
    "literal": lambda s, h, x: h * torch.tensor([1.0, 2, 3, 4, 5, 6]),
    "plain attribute": lambda s, h, x: h * s.plain,
    "number of a constant": lambda s, h, x: h * torch.linspace(0, 1, 3)[1].item(),
    "arange of the batch": lambda s, h, x: h + torch.arange(x.shape[0]).unsqueeze(1),
    "checkpoint": lambda s, h, x: checkpoint(s.first, h, use_reentrant=False),
    "autograd function": lambda s, h, x: Twice.apply(h),
    "vmap": lambda s, h, x: torch.vmap(s.first)(h),
    "divided by the batch": lambda s, h, x: h / x.shape[0],
    "sizes with an offset": lambda s, h, x: torch.cat([h, h[:1]])[: x.shape[0]],
    "statistics of the batch": lambda s, h, x: F.batch_norm(h, None, None, training=True),
    "activation kept": _remembers,
    "counter": _counts,
    "a branch that makes no difference": lambda s, h, x: h.reshape(1, 6) if x.shape[0] == 1 else h.reshape(-1, 6),
    "stacked batches, split again": lambda s, h, x: torch.cat([h, s.first(h)]).chunk(2)[1],
    "asserted": lambda s, h, x: (torch._check(x.shape[0] == h.shape[0]), h)[1],
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded(name):
    model, x = Net(RECORDED[name]).eval(), torch.randn(2, 6)
    with assert_untouched(model):
        network = mp.trace(model, x)
    assert network.captured.not_recorded == ""
    assert network.captured.varies
    assert model.calls == 0 and not hasattr(model, "cache")
    for batch in (2, 3, 5, 9):
        x = torch.randn(batch, 6)
        with torch.no_grad(), untouched(model):
            expected = model(x.clone())
        assert relative_error(network.run(x.clone()), expected) < 1e-6


def _loops(s, h, x):
    return torch.stack([s.first(row) for row in h])


def _writes_into_a_constant(s, h, x):
    literal = torch.tensor([1.0, 2, 3, 4, 5, 6])
    literal[0] = h.mean()
    return h * literal


def _writes_into_an_attribute(s, h, x):
    s.plain[0] = 5
    return h * s.plain


REFUSED = {
    "branch on a value": lambda s, h, x: h if h.sum() > 0 else -h,
    "item": lambda s, h, x: h * x.max().item(),
    "tolist": lambda s, h, x: h * x[0].tolist()[0],
    "numpy": lambda s, h, x: torch.from_numpy(np.tanh(h.detach().numpy())),
    "storage": lambda s, h, x: h * float(np.frombuffer(bytes(x.untyped_storage()), dtype=np.float32)[0]),
    "number of a parameter": lambda s, h, x: h * float(s.scale),
    "number of a buffer": lambda s, h, x: h * s.ones[0].item(),
    "constant in place": _writes_into_a_constant,
    "attribute in place": _writes_into_an_attribute,
    "input in place": lambda s, h, x: s.first(x.add_(1)),
    "buffer in place": lambda s, h, x: h * s.ones.mul_(1.5),
    "mask": lambda s, h, x: h[h > 0].sum() * h,
    "nonzero": lambda s, h, x: h * torch.nonzero(h > 0).shape[0],
    "loop over the batch": _loops,
    "halves": lambda s, h, x: h.view(2, x.shape[0] // 2, 6).view(-1, 6),
    "square of the batch": lambda s, h, x: h * x.shape[0] ** 2,
    "half of the batch": lambda s, h, x: h * (x.shape[0] // 2),
    "cond": lambda s, h, x: torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (h,)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    """What is refused goes to torch.export, and is right, or an error."""
    model, x = Net(REFUSED[name]).eval(), torch.randn(2, 6)
    with assert_untouched(model):
        try:
            captured = capture(model, (x,), {})
        except mp.UntraceableError as error:
            assert "What to do" in str(error)
            return
    assert captured.not_recorded
    with pytest.warns() if captured.batch_fixed else _nothing():
        network = mp.trace(model, x)
    for batch in (2, 6) if captured.varies else (2,):
        x = torch.randn(batch, 6)
        with torch.no_grad(), untouched(model):
            expected = model(x.clone())
        assert relative_error(network.run(x.clone()), expected) < 1e-5


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


BRANCHES = {
    "at most 4": (lambda s, h, x: h if x.shape[0] <= 4 else -h, (1, 4)),
    "twice the batch": (lambda s, h, x: h if 2 * x.shape[0] < 18 else -h, (1, 8)),
    "smaller": (lambda s, h, x: h * min(x.shape[0], 7), (1, 7)),
    "one is special": (lambda s, h, x: -h if x.size(0) == 1 else h, (2, None)),
    "one value is special": (lambda s, h, x: -h if h.numel() == 60 else h, (1, 9)),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_branches_on_the_batch(name):
    forward, (low, high) = BRANCHES[name]
    model = Net(forward).eval()
    network = mp.trace(model, torch.randn(2, 6))
    assert network.captured.batch_range == (low, high)
    graph = mp.cut(network, mp.Plan({next(iter(network.space)).name: range(3)}), form="graph").model
    outside = low - 1 if high is None else high + 1
    for call in (network.run, graph):
        assert len(call(torch.randn(high or 9, 6))) == (high or 9)
        with pytest.raises(mp.InputsError, match=f"a batch of {outside}: .* branches on the batch"):
            call(torch.randn(outside, 6))
    if high is not None:  # an example of the other branch
        x = torch.randn(20, 6)
        with torch.no_grad():
            assert relative_error(mp.trace(model, x).run(x), model(x)) < 1e-6


def _nodes(captured: Captured):
    """Operators with their modules and shapes; slices that take all are in exports alone."""
    for node in captured.graph.nodes:
        shape = captured.concrete(node.meta.get("val"), 5)
        takes_all = op_name(node.target) == "slice" and shape == captured.concrete(node.args[0].meta["val"], 5)
        if node.op == "call_function" and isinstance(shape, (tuple, list)) and not takes_all:
            yield op_name(node.target).removesuffix("_copy"), module_of(node), list(shape)


NETWORKS = {
    "resnet20": lambda: (create("zoo:resnet20"), torch.randn(1, 3, 32, 32)),
    "mobilenet_v1": lambda: (create("zoo:mobilenet_v1"), torch.randn(2, 3, 32, 32)),
    "vit": lambda: (create("zoo:vit_micro"), torch.randn(1, 1, 28, 28)),
    "encoder": lambda: (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
        torch.randn(2, 5, 8),
    ),
    "weight norm": lambda: (
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 4)),
        torch.randn(2, 6),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_recorder_and_export_agree(name):
    model, x = NETWORKS[name]()
    model.eval()
    recorded = capture(model, (x,), {})
    exported = captured_from(export_program(copy.deepcopy(model), (x,), {}, 0), 0)
    assert recorded.not_recorded == ""
    assert list(_nodes(recorded)) == list(_nodes(exported))
    assert recorded.aliases == exported.aliases and recorded.tensors.keys() == exported.tensors.keys()


def test_what_depends_on_keywords_and_has_any_of_them():
    """torch.export cannot name the shapes of `**kwargs`; the recorder need not."""

    class Any(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, **inputs):
            return self.layer(inputs["x"]) + inputs["y"]

    network = mp.trace(Any(), None, {"x": torch.randn(2, 4), "y": torch.randn(2, 4)})
    assert network.captured.varies and network.run(x=torch.randn(7, 4), y=torch.randn(7, 4)).shape == (7, 4)


def test_models_without_numbers():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    network = mp.trace(model, torch.empty(2, 4, device="meta"))
    assert "without plain numbers" in network.captured.not_recorded and network.captured.varies
    assert network.notes == [f"captured by torch.export, as {network.captured.not_recorded}"]


def test_constants_train():
    """A literal of the forward is no inference tensor: gradients go through it."""
    network = mp.trace(Lambda(lambda s, x: x * torch.tensor([1.0, 2.0])), torch.randn(2, 2))
    x = torch.randn(2, 2, requires_grad=True)
    network.run(x).sum().backward()
    assert x.grad.tolist() == [[1.0, 2.0]] * 2


def test_runs_do_not_write_into_the_models_buffers():
    model = Net(REFUSED["buffer in place"]).eval()
    x = torch.randn(2, 6)
    network = mp.trace(model, x)
    with assert_untouched(model):
        network.run(x)
        network.run(x, training=True)


class Anchors(nn.Module):
    """As detectors do: what fits the batch is made once, and made anew when the batch changes."""

    def __init__(self):
        super().__init__()
        self.layer, self.anchors = nn.Linear(6, 6), None

    def forward(self, x):
        if self.anchors is None or self.anchors.shape[0] != x.shape[0]:
            self.anchors = torch.arange(x.shape[0]).float()[:, None].expand(-1, 6) * 0 + 3
        return self.layer(x) + self.anchors


@pytest.mark.parametrize("called_before", [0, 4])
def test_caches_that_fit_the_batch(called_before):
    model = Anchors().eval()
    if called_before:
        model(torch.randn(called_before, 6))
    network = mp.trace(model, torch.randn(2, 6))
    assert network.captured.not_recorded == ""
    for batch in (1, 3, 4, 8):
        x = torch.randn(batch, 6)
        assert relative_error(network.run(x), copy.deepcopy(model)(x)) < 1e-6
