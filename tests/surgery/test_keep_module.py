"""`keep_module=True`: the rules found are enough for the class to run, and no stricter than it needs."""

import pytest
import torch
from torch import nn

import metaprune as mp
from metaprune.surgery.keep_module import module_rules
from metaprune.testing import perturb

pytestmark = pytest.mark.filterwarnings("ignore")


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x):
        left, right = self.a(x).chunk(2, dim=-1)
        return self.c(self.b(left * right.mean(-1, keepdim=True)).relu())


class Literal(nn.Module):
    """A forward that writes a width down: no attribute can follow."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x):
        y = self.a(x).view(-1, 4, 4).transpose(1, 2).reshape(-1, 16)
        return self.c(self.b(y).relu())


def test_a_free_network_has_no_rules():
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    rules = module_rules(mp.trace(perturb(model.eval()), torch.randn(2, 5)))
    assert (rules.ties, rules.whole, rules.why) == ((), (), "any widths")


def test_halves_are_tied():
    network = mp.trace(perturb(Halves().eval()), torch.randn(2, 6))
    rules = module_rules(network)
    assert rules.ties == (tuple(g.name for g in network.space if g.width == 8),)
    assert not rules.whole


def test_what_cannot_follow_is_left_whole_with_the_reason():
    network = mp.trace(perturb(Literal().eval()), torch.randn(2, 6))
    rules = module_rules(network)
    left = {network.space[name].width for name in rules.whole}
    assert left == {16}
    assert "does not" in rules.why
    result = mp.prune(Literal().eval(), torch.randn(2, 6), budget="params=80%", keep_module=True)
    assert type(result.model) is Literal
    assert result.record["module_rules"]["whole"] == list(rules.whole)


def test_groups_that_stay_anyway_are_not_tried():
    network = mp.trace(perturb(Literal().eval()), torch.randn(2, 6))
    followed = mp.Constraints(only=tuple(f"={g.name}" for g in network.space if g.width == 12))
    assert module_rules(network, 0, followed).why == "any widths"
    literal = mp.Constraints(ignore=followed.only)
    assert {network.space[name].width for name in module_rules(network, 0, literal).whole} == {16}


@pytest.mark.parametrize("build", ["torchvision", "timm", "zoo"])
def test_vision_transformers_keep_their_class(build):
    model, size = vit(build)
    kept = mp.prune(model, torch.randn(2, 3, size, size), budget="macs=60%", method="random", keep_module=True)
    assert type(kept.model) is type(model)
    assert kept.pruned.form == "module"
    assert kept.record["cost"]["after"]["macs"] <= 0.6 * kept.record["cost"]["before"]["macs"]


def vit(build: str):
    torch.manual_seed(0)
    if build == "torchvision":
        from torchvision.models.vision_transformer import VisionTransformer

        return perturb(VisionTransformer(32, 16, 2, 3, 48, 96).eval()), 32
    from metaprune.models import create

    if build == "timm":
        return perturb(create("timm:test_vit", img_size=32).eval()), 32
    return perturb(create("zoo:vit_tiny", image_size=32).eval()), 32


def test_the_same_rules_in_every_run():
    network = mp.trace(vit("torchvision")[0], torch.randn(2, 3, 32, 32))
    assert module_rules(network, 3) == module_rules(network, 3)
