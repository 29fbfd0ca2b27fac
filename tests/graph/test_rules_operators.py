"""Rules by operator family, on one layer before and one behind the operator: which groups come out, and the proof."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metaprune.testing import assert_cut_equals_mask, perturb
from metaprune.testing.networks import Lambda
from metaprune.tracing import trace

pytestmark = pytest.mark.filterwarnings("ignore")


def between(function, inner, outer=None, *, image=False, tokens=None):
    """layer a -> function -> layer b, and an input for it."""
    outer = inner if outer is None else outer
    if image:
        model = Lambda(lambda m, x: m.b(function(m.a(x))), a=nn.Conv2d(3, inner, 1), b=nn.Conv2d(outer, 3, 1))
        return model, (torch.randn(2, 3, 4, 4),)
    model = Lambda(lambda m, x: m.b(function(m.a(x))), a=nn.Linear(6, inner), b=nn.Linear(outer, 3))
    return model, (torch.randn(2, tokens, 6) if tokens else torch.randn(2, 6),)


# name -> (network, sorted widths of its groups); rows of the first layer that nobody reads are a group of their own
SHAPE = {
    "transposed view is one permutation": (between(lambda x: x.view(-1, 3, 4).transpose(1, 2).flatten(1), 12), [12]),
    "view and back asks for the rectangle": (between(lambda x: x.view(-1, 3, 4).relu().flatten(1), 12), [3, 4]),
    "unflatten": (between(lambda x: x.unflatten(1, (2, 6)).sum(1), 12, 6), [2, 6]),
    "squeeze and unsqueeze": (between(lambda x: x.unsqueeze(1).relu().squeeze(1), 8), [8]),
    "repeat": (between(lambda x: x.repeat(1, 2), 4, 8), [4]),
    "repeat_interleave": (between(lambda x: x.repeat_interleave(2, dim=1), 4, 8), [4]),
    "expand is uniform": (between(lambda x: x * x.sum(1, keepdim=True).expand(-1, 8), 8), [8]),
    "broadcast of one channel locks it": (between(lambda x: x[:, :1] * x[:, 1:], 9, 8), [8]),
    "roll": (between(lambda x: x.roll(3, 1), 8), [8]),
    "flip": (between(lambda x: x.flip(1), 8), [8]),
    "pixel_shuffle": (between(lambda x: F.pixel_shuffle(x, 2), 12, 3, image=True), [3]),
    "pixel_unshuffle": (between(lambda x: F.pixel_unshuffle(x, 2), 3, 12, image=True), [3]),
    "channel_shuffle": (between(lambda x: F.channel_shuffle(x, 3), 12, 12, image=True), [12]),
    "unfold": (between(lambda x: F.unfold(x, 2).unflatten(2, (3, 3)), 4, 16, image=True), [4]),
    "fold": (between(lambda x: F.fold(F.unfold(x, 2), (4, 4), 2), 4, image=True), [4]),
}

CUTTING = {
    "cat with itself": (between(lambda x: torch.cat([x, x], 1), 4, 8), [4]),
    "cat with one row of itself": (between(lambda x: torch.cat([x, x[:, :1].cos()], 1), 5, 6), [1, 4]),
    "stack": (between(lambda x: torch.stack([x, x * 2], 1).sum(1), 8), [8]),
    "split uneven": (between(lambda x: torch.cat(list(reversed(x.split([2, 6], 1))), 1), 8), [8]),
    "chunk ties halves that meet": (between(lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1], 8, 4), [4]),
    "glu": (between(lambda x: F.glu(x, 1), 8, 4), [4]),
    "unbind locks": (between(lambda x: sum(x.unbind(1)).unsqueeze(1).expand(-1, 4) * 1, 6, 4), [4]),
    "select locks one row": (between(lambda x: x[:, 1:] * x[:, 0].unsqueeze(1), 8, 7), [7]),
    "slice from the middle": (between(lambda x: x[:, 2:6], 8, 4), [4, 4]),
    "slice from the end": (between(lambda x: x[:, -3:], 8, 3), [3, 5]),
    "strided slice": (between(lambda x: x[:, 1::2], 8, 4), [4, 4]),
    "narrow": (between(lambda x: x.narrow(1, 3, 4), 8, 4), [4, 4]),
    "constants of a pad go one by one": (between(lambda x: F.pad(x, (2, 1), value=0.5), 8, 11), [3, 8]),
    "reflecting pad locks": (between(lambda x: F.pad(x[:, None], (2, 2), mode="reflect")[:, 0], 8, 12), []),
    "write through a slice": (between(lambda x: _write(x, slice(0, 4)), 8), [8]),
    "write through a strided slice locks": (between(lambda x: _write(x, slice(0, None, 2)), 8), []),
    "index with a list": (between(lambda x: x[:, [2, 0, 1]], 3), [3]),
}


def _write(x, where):
    x = x.clone()
    x[:, where] += 1
    return x


REDUCTION = {
    "softmax": (between(lambda x: x.softmax(-1), 8), []),
    "log_softmax": (between(lambda x: x.log_softmax(-1), 8), []),
    "mean": (between(lambda x: x - x.mean(-1, keepdim=True), 8), [8]),
    "amax": (between(lambda x: x - x.amax(-1, keepdim=True), 8), [8]),
    "amin": (between(lambda x: x - x.amin(-1, keepdim=True), 8), [8]),
    "sum": (between(lambda x: x / (1 + x.square().sum(-1, keepdim=True)), 8), [8]),
    "norm": (between(lambda x: F.normalize(x, dim=-1), 8), [8]),
    "std": (between(lambda x: x / (1 + x.std(-1, keepdim=True)), 8), [8]),
    "variance of a population": (between(lambda x: x / (1 + x.var(-1, unbiased=False, keepdim=True)), 8), [8]),
    "var_mean": (between(lambda x: torch.var_mean(x, -1, keepdim=True)[0] + x, 8), [8]),
    "std over all": (between(lambda x: x / (1 + x.std()), 8), [8]),
    "over tokens": (between(lambda x: x - x.mean(1, keepdim=True), 8, tokens=5), [8]),
    "max over tokens": (between(lambda x: x.max(1).values, 8, tokens=5), [8]),
}

NORM = {
    "layer_norm": (between(nn.LayerNorm(8), 8), [8]),
    "layer_norm without parameters": (between(lambda x: F.layer_norm(x, (8,)), 8), [8]),
    "rms_norm": (between(nn.RMSNorm(8), 8), [8]),
    "group_norm": (between(nn.GroupNorm(4, 12), 12, image=True), [3, 4]),
    "group_norm of a square": (between(nn.GroupNorm(3, 9), 9, image=True), [3, 3]),
    "group_norm of one": (between(nn.GroupNorm(1, 12), 12, image=True), [12]),
    "group_norm of all": (between(nn.GroupNorm(12, 12), 12, image=True), [12]),
    "instance_norm": (between(nn.InstanceNorm2d(12, affine=True), 12, image=True), [12]),
    "weight_norm": (between(nn.utils.parametrizations.weight_norm(nn.Conv2d(12, 12, 3)), 12, image=True), [12, 12]),
    "batch_norm": (between(nn.BatchNorm2d(12), 12, image=True), [12]),
    "prelu": (between(nn.PReLU(12), 12, image=True), [12]),
    "prelu of one": (between(nn.PReLU(), 12, image=True), [12]),
}

SPATIAL = {
    "max_pool": (between(lambda x: F.max_pool2d(x, 2), 8, image=True), [8]),
    "adaptive_pool": (between(lambda x: F.adaptive_avg_pool2d(x, 3), 8, image=True), [8]),
    "upsample": (between(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 8, image=True), [8]),
    "nearest": (between(lambda x: F.interpolate(x, size=(7, 5)), 8, image=True), [8]),
    "max over space": (between(lambda x: x * x.amax((2, 3), keepdim=True), 8, image=True), [8]),
}

CASES = {**SHAPE, **CUTTING, **REDUCTION, **NORM, **SPATIAL}


@pytest.mark.parametrize("name", CASES)
def test_groups_and_proof(name):
    (model, args), widths = CASES[name]
    cuts = assert_cut_equals_mask(perturb(model).eval(), args, seeds=(0, 1))
    assert sorted(g.width for g in cuts[0].network.space) == widths
    assert cuts[0].network.uncovered == [] and cuts[0].network.space.over_merged == 0


def test_statistics_over_channels_are_noted():
    model, args = between(nn.LayerNorm(8), 8)
    assert any("layer_norm" in note and "width" in note for note in trace(model.eval(), args).notes)
    model, args = between(torch.relu, 8)
    assert trace(model.eval(), args).notes == []
