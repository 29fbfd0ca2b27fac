"""Proofs of networks that draw numbers, make tensors of their own, or return nothing that could be compared."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metaprune as mp
from metaprune.core.errors import VacuousProofWarning
from metaprune.testing import random_plan
from metaprune.testing.networks import Lambda


def net(forward, **modules):
    return Lambda(forward, **modules).eval()


def layers(**more):
    return {"a": nn.Linear(8, 16), "b": nn.Linear(16, 16), "c": nn.Linear(16, 16), "out": nn.Linear(16, 3), **more}


def reparameterised(s, x):
    h = torch.relu(s.a(x))
    mean, log_variance = s.b(h), s.c(h)
    return s.out(mean + torch.randn_like(mean) * torch.exp(log_variance / 2))


def gumbel(s, x):
    h = s.b(F.gelu(s.a(x)))
    return s.out(F.gumbel_softmax(h, dim=-1) * h)


DRAWING = {
    "variational": reparameterised,
    "dropout that is always on": lambda s, x: s.out(
        F.dropout(torch.relu(s.b(F.dropout(s.a(x), 0.3, True))), 0.2, True)
    ),
    "feature dropout": lambda s, x: s.out(F.dropout1d(s.a(x)[..., None], 0.3, True)[..., 0]),
    "alpha dropout": lambda s, x: s.out(F.alpha_dropout(s.a(x), 0.3, True)),
    "gumbel": gumbel,
    "bernoulli of values": lambda s, x: s.out(torch.bernoulli(torch.sigmoid(s.a(x)))),
    "normal of values": lambda s, x: s.out(torch.normal(s.a(x), s.b(s.a(x)).abs() + 0.1)),
    "noise of a literal size": lambda s, x: s.out(torch.relu(s.a(x)) + torch.randn(x.shape[0], 16)),
    "in-place noise": lambda s, x: s.out(s.a(x) * torch.empty_like(s.a(x)).uniform_(0.5, 1.5)),
    "noise per sample": lambda s, x: s.out(torch.relu(s.a(x) + torch.randn(x.shape[0], 1))),
}


@pytest.mark.parametrize("name", DRAWING)
@pytest.mark.parametrize("form", ["auto", "graph"])
def test_a_network_that_draws_is_proved_by_common_draws(name, form):
    model, x = net(DRAWING[name], **layers()), torch.randn(4, 8)
    state = torch.get_rng_state()
    network = mp.trace(model, x)
    pruned = mp.cut(network, random_plan(network.space, 0.6, 0), form=form)
    assert pruned.error <= 1e-9
    assert pruned.form == ("graph" if form == "graph" or "literal" in name else "module")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_wrong_cut_of_a_network_that_draws_is_caught(monkeypatch):
    """Common draws do not make unequal networks equal."""
    from metaprune.core.errors import VerificationError
    from metaprune.surgery import verify

    run = verify.run_masked
    monkeypatch.setattr(verify, "run_masked", lambda *a, **k: run(*a, **k) * 1.001)
    with pytest.raises(VerificationError, match=r"draws random numbers \(randn_like\)"):
        mp.prune(net(reparameterised, **layers()), torch.randn(4, 8), budget="params=70%", progress=False)


def recurrent(s, x):
    h = torch.zeros(1, x.size(0), 16)
    y, _ = s.layer(x[:, None].expand(-1, 3, -1), (h, torch.zeros_like(h)))
    return s.out(y[:, -1])


def blurred(s, x):
    y = s.conv(x.reshape(-1, 2, 2, 2))
    return s.out(F.conv2d(y, torch.full((16, 1, 2, 2), 0.25), groups=16).flatten(1))


LITERAL = {
    "states": (recurrent, {"layer": nn.LSTM(8, 16, batch_first=True)}),
    "a kernel": (blurred, {"conv": nn.Conv2d(2, 16, 1)}),
    "a list": (lambda s, x: s.out(s.a(x) @ torch.tensor([[1.0, 0.5]]).T @ torch.ones(1, 16)), {"a": nn.Linear(8, 2)}),
    "numpy": (lambda s, x: s.out(s.a(x @ s.plain)), {"plain": torch.rand(8, 8)}),
    "casts": (lambda s, x: s.out(s.a(x.to(torch.float32)).type(torch.float32).float()), {}),
    "complex": (lambda s, x: s.out((s.a(x) * s.factor).abs()), {"factor": nn.Parameter(torch.randn(16) + 1j)}),
}


@pytest.mark.parametrize("name", LITERAL)
@pytest.mark.filterwarnings("ignore::metaprune.UncoveredOpWarning")
def test_literal_tensors_follow_float64(name):
    forward, more = LITERAL[name]
    model = net(forward, **layers(**more))
    network = mp.trace(model, torch.randn(4, 8))
    assert mp.cut(network, random_plan(network.space, 0.6, 0)).error <= 1e-9
    assert torch.get_default_dtype() == torch.float32


NOTHING = {
    "none": lambda s, x: s.out(s.a(x)) is None or None,
    "a number": lambda s, x: (s.out(s.a(x)), 3.0)[1],
    "a text": lambda s, x: (s.out(s.a(x)), "text")[1],
    "nothing in a dict": lambda s, x: (s.out(s.a(x)), {})[1],
    "what was cut times zero": lambda s, x: s.out(s.a(x)) * 0 + x[:, :3],
    "what was not cut": lambda s, x: (s.out(s.a(x)), x[:, :3] + 1)[1],
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_proof_of_nothing_is_said(name, tmp_path):
    model = net(NOTHING[name], **layers())
    with pytest.warns(VacuousProofWarning, match="not proved, as there is nothing to compare"):
        result = mp.prune(model, torch.randn(4, 8), budget="params=90%", method="random", progress=False)
    assert result.pruned.error is None and result.pruned.unproved
    assert result.record["proof"]["error"] is None and result.record["proof"]["unproved"] == result.pruned.unproved


def test_dead_units_are_no_proof_of_nothing():
    model = net(lambda s, x: s.out(torch.relu(s.a(x))), **layers())
    nn.init.constant_(model.a.bias, -100)
    network = mp.trace(model, torch.randn(4, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error", VacuousProofWarning)
        assert mp.cut(network, random_plan(network.space, 0.6, 0)).error == 0
