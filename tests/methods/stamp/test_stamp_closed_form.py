"""Without a gradient step: channels by statistics, weights by least squares, a head by ridge regression."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import metaprune as mp
from metaprune.core.errors import CollapseWarning, ConfigError
from metaprune.core.rng import Rng
from metaprune.data.joined import join_data
from metaprune.methods.stamp import headroom
from metaprune.methods.stamp.closed_form import ABSENT, head_of, with_head
from metaprune.methods.stamp.config import MetaConfig
from metaprune.methods.stamp.method import Stamp
from metaprune.protocol.method import PruneTask
from metaprune.testing import random_plan
from metaprune.testing.method_suite import small_data, small_network
from metaprune.train.evaluate import evaluate

EXAMPLE = torch.zeros(2, 1, 28, 28)


def network():
    return mp.trace(small_network("cnn"), EXAMPLE)


class Pixels(nn.Module):
    """Four pixels, a hidden layer and a head."""

    def __init__(self, bias=True):
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, 5, bias=bias)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(x[:, 0, :2, :2].flatten(1))))


@pytest.mark.parametrize("bias", [True, False])
def test_the_head_is_the_ridge_regression_of_the_classes_on_the_features(bias):
    with Rng(0).torch_global():
        net = mp.trace(Pixels(bias).eval(), EXAMPLE)
    data, plan = small_data(n=200), random_plan(net.space, 0.7, seed=0)
    data = dataclasses.replace(data, train=data.train.subset(torch.nonzero(data.train.labels < 3).flatten()))
    new = head_of(net, plan, data, Rng(1))
    kept = list(plan.keep["hidden"])
    x, y = next(iter(data.train.batches(1000)))
    features = torch.relu(net.model.hidden(x[:, 0, :2, :2].flatten(1)))[:, kept].detach().double()
    dropped = [i for i in range(6) if i not in kept]
    weight = new["head.weight"].double()
    assert not weight[:, dropped].any() and not weight[3:].any()
    if bias:
        assert (new["head.bias"][3:] == ABSENT).all()
    z = features - features.mean(dim=0) * bias
    target = nn.functional.one_hot(y, 3).double()
    gram, reach = z.T @ z / len(z), z.T @ (target - target.mean(dim=0) * bias) / len(z)
    found = weight[:3][:, kept].T
    # found = scale (gram + ridge I)^-1 reach for one of the scales and ridges
    residual = min(
        float(
            (scale * torch.linalg.solve(gram + r * gram.diagonal().mean() * torch.eye(len(kept)), reach) - found).norm()
        )
        for scale in (1, 2, 4, 8, 16)
        for r in (1e-3, 1e-2, 1e-1, 1)
    )
    assert residual <= 1e-5 * float(found.norm())


def test_nothing_is_trained_and_the_head_learns_what_can_be_learned(monkeypatch):
    data, model = small_data(n=200), small_network("cnn")
    labels = (data.train.images.float().mean(dim=(1, 2, 3)) > 127.5).long()
    for part in (data.train, data.val, data.test):
        part.images[: len(part) // 2] //= 2  # dark images, and bright ones
        part.labels = (torch.arange(len(part)) >= len(part) // 2).long()
    assert len(labels) == 200
    monkeypatch.setattr(Stamp, "fit", lambda *_: pytest.fail("meta-trained"))
    result = mp.prune(
        model,
        EXAMPLE,
        budget="params=40%",
        method="stamp",
        method_options={"adapt_steps": 0},
        data=data,
        recover="none",
        progress=False,
    )
    assert result.record["method_details"]["stamp"]["adaptation"] == [] and result.pruned.error <= 1e-9
    assert evaluate(result.model, data.test, objective=data.objective, batch_size=100)["accuracy"] > 0.95


def test_pairs_have_no_statistics_and_say_so():
    with pytest.raises(ConfigError, match="chooses channels"):
        Stamp(mask="statistics", variant="filter")
    with pytest.raises(ConfigError, match=r"set stamp\.mask='generator'"):
        Stamp(adapt_steps=0, freeze="threshold")
    assert not Stamp(adapt_steps=0, variant="filter").reads_statistics
    assert not Stamp(adapt_steps=0, mask="generator").reads_statistics and Stamp(mask="statistics").reads_statistics


@pytest.fixture
def domains():
    return [dataclasses.replace(small_data(seed, 48), name=f"domain{seed}") for seed in (0, 1)]


def test_a_fit_on_several_domains_first_measures_what_their_own_masks_gain(domains, monkeypatch):
    monkeypatch.setattr(headroom, "STEPS", (0, 1))
    brief = MetaConfig(episodes=1, inner_steps=1, batch_size=16, ways=(2, 3), augment=False)
    method = Stamp(meta=brief, set_dim=8, heads=2, hidden=8, shares=(0.3, 0.3))
    task = PruneTask(network(), join_data(domains, "both"), batch_size=32)
    with pytest.warns(CollapseWarning, match="a generator can gain little: try `adapt --steps 0`"):
        artifact = method.fit([task], Rng(0))  # of noise no mask says anything
    found = artifact.info["headroom"]
    assert set(found["rows"]) == {"domain0", "domain1"} and not found["pays"]
    assert set(found["rows"]["domain0"]) == {"own", "domain1", "pooled", "magnitude", "random"}
    assert set(found["rows"]["domain0"]["own"]) == {0, 1} and set(found["rows"]["domain0"]["domain1"]) == {0, 1}
    assert all(0 <= a <= 1 for by in found["rows"].values() for steps in by.values() for a in steps.values())


def test_own_masks_that_gain_much_are_worth_a_generator():
    def rows(own):
        return {
            name: {"own": {20: own}, other: {20: 0.5}, "pooled": {20: 0.55}} for name, other in (("a", "b"), ("b", "a"))
        }

    assert headroom._verdict(rows(0.7), 500)["pays"] and not headroom._verdict(rows(0.56), 500)["pays"]
    assert headroom._verdict(rows(0.7), 500)["gain"] == pytest.approx({"foreign": 0.2, "pooled": 0.15})


def test_classes_beyond_the_head_are_left_out():
    data = small_data(n=60)
    few = headroom.few(data, 4)
    assert int(few.train.labels.max()) <= 3 and int(few.val.labels.max()) <= 3 and few.test is None
    assert np.isfinite(with_head(network(), few, Rng(0)).tensors["linear.weight"].detach().numpy()).all()
