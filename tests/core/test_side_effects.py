"""What a call of a model leaves behind is taken back: attributes, containers, caches, buffers, random state."""

import copy
import functools
import random

import pytest
import torch
from torch import nn

import metaprune as mp
from metaprune.core.errors import UntraceableError
from metaprune.core.side_effects import copy_model, side_effects_undone

CACHE, SHARED = {}, []


@functools.lru_cache
def remembered(n):
    return torch.arange(n)


class Leaving(nn.Module):
    """Sets attributes, fills containers and caches of every reach, and counts in a buffer and in its class."""

    position = None
    calls = 0
    shared = SHARED

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.out = nn.Conv2d(8, 2, 1)
        self.log, self.nested, self.holder = [], {"a": {}}, type("Holder", (), {})()
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("seen", None)

    def forward(self, x):
        y = torch.relu(self.conv(x))
        self.position = torch.linspace(0, 1, y.shape[-1])
        self.new = y
        self.log.append(y)
        self.nested["a"]["y"] = y
        self.holder.y = y
        self.seen = y
        CACHE["y"] = y
        Leaving.shared.append(y)
        Leaving.calls += 1
        return self.out(y + self.position + remembered(y.shape[-1]))


def everything(model):
    held = (model.log, model.nested, vars(model.holder), model.seen, model.position, CACHE, Leaving.shared)
    return copy.copy(vars(model)), [copy.deepcopy(h) for h in held], Leaving.calls, remembered.cache_info().currsize


@pytest.fixture(autouse=True)
def clean():
    CACHE.clear()
    Leaving.shared.clear()
    Leaving.calls = 0
    remembered.cache_clear()


def test_a_trace_leaves_nothing():
    model, x = Leaving().eval(), torch.randn(2, 3, 8, 8)
    seen = []
    model.conv.register_forward_hook(lambda *_: seen.append(1))
    before, numbers = everything(model), random.getstate()
    mp.trace(model, x)
    assert everything(model)[1:] == before[1:] and vars(model).keys() == before[0].keys()
    assert seen == [] and random.getstate() == numbers
    result = mp.prune(model, x, budget="macs=50%", progress=False)
    assert result.pruned.form == "module" and type(result.model(x)) is torch.Tensor
    assert type(model(x)) is torch.Tensor and type(model.position) is torch.Tensor


def test_a_trace_that_fails_leaves_nothing():
    class Failing(Leaving):
        def forward(self, x):
            y = super().forward(x)
            return y if y.sum() > 0 else -y

    model = Failing().eval()
    before = everything(model)
    with pytest.raises(UntraceableError):
        mp.trace(model, torch.randn(2, 3, 8, 8))
    assert everything(model)[1:] == before[1:] and vars(model).keys() == before[0].keys()


def test_buffers_and_draws():
    model = nn.BatchNorm1d(4)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with side_effects_undone(model):
        model(torch.randn(8, 4))
        assert model.num_batches_tracked == 1
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_activation_kept_as_an_attribute_can_be_copied():
    model = Leaving()
    model(torch.randn(2, 3, 8, 8))  # attributes now hold tensors with a graph
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    clone = copy_model(model)
    assert torch.equal(clone.new, model.new) and clone.new.grad_fn is None and model.new.grad_fn is not None
    assert mp.prune(model, torch.randn(2, 3, 8, 8), budget="macs=50%", progress=False).pruned.form == "module"


def test_what_a_subclass_of_a_container_gives_is_not_looked_at():
    """transformers' table of activations makes a new module on every access."""

    class Makes(dict):
        def __getitem__(self, key):
            return super().__getitem__(key)()

        def items(self):
            return [(k, self[k]) for k in self]

    model = nn.Linear(2, 2)
    model.table = Makes(a=nn.ReLU)
    with side_effects_undone(model):
        pass
    assert dict.items(model.table) == {"a": nn.ReLU}.items()
