"""Operators that treat channels alike let them go: cut equals mask, costs equal the dispatcher's, nothing locked."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metaprune as mp
from metaprune.graph.rules import RULES
from metaprune.testing import assert_cut_equals_mask
from metaprune.testing.networks import Lambda

CONV, LINEAR = nn.Conv2d, nn.Linear


def net(forward, **modules):
    return Lambda(forward, **modules).eval()


def images(forward, width=16):
    """forward: (self, features of a convolution, images) -> what a last convolution reads."""
    return net(
        lambda s, x: s.out(forward(s, s.conv(x), x)),
        conv=CONV(3, width, 3, padding=1),
        out=CONV(width, 2, 1),
        grid=LINEAR(3, 50),
        spatial=CONV(2, 1, 7, padding=3),
    )


def tokens(forward, out=16):
    """forward: (self, hidden [B, T, 16]) -> what a last linear layer reads."""
    return net(lambda s, x: s.out(forward(s, s.enter(x))), enter=LINEAR(8, 16), out=LINEAR(out, 3), **EXTRA())


def EXTRA():
    return {
        "second": LINEAR(16, 16),
        "w": LINEAR(16, 12, bias=False),
        "v": LINEAR(12, 10, bias=False),
        "both": nn.Bilinear(16, 16, 14),
        "cell": nn.LSTMCell(16, 12),
        "gru": nn.GRUCell(12, 12),
        "rnn": nn.RNNCell(12, 16),
        "lstm": nn.LSTM(16, 14, num_layers=2, bidirectional=True, proj_size=6, batch_first=True),
    }


def attention(s, y, x):
    pooled = torch.cat([y.max(1, keepdim=True)[0], y.mean(1, keepdim=True)], 1)
    return y * torch.sigmoid(s.spatial(pooled))


def warped(s, y, x):
    matrices = s.grid(x.mean((2, 3)))[:, :6].reshape(-1, 2, 3)
    return F.grid_sample(y, F.affine_grid(matrices, list(y.shape), align_corners=False), align_corners=False)


def cells(s, y):
    h, c = s.cell(y[:, 0])
    h, c = s.cell(y[:, 1], (h, c))
    return s.rnn(s.gru(h, c))


def picks(y, count):
    return torch.zeros(y.shape[0], count, 1, dtype=torch.long).expand(-1, -1, y.shape[-1])


IMAGES, TOKENS = torch.randn(2, 3, 8, 8), torch.randn(2, 6, 8)
BACK = [7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8]
CASES = {
    "grid_sample": (images(lambda s, y, x: F.grid_sample(y, s.grid(x.mean((2, 3))).view(-1, 5, 5, 2).tanh())), 1),
    "affine_grid": (images(warped), None),
    "max over channels": (images(attention), 1),
    "min over channels": (tokens(lambda s, y: y - y.min(-1, keepdim=True)[0]), 1),
    "nearest-exact": (images(lambda s, y, x: F.interpolate(y, scale_factor=2, mode="nearest-exact")), 1),
    "fft over space": (images(lambda s, y, x: torch.fft.irfft2(torch.fft.rfft2(y) * 0.5)), 1),
    "fft over tokens": (tokens(lambda s, y: torch.fft.fft(y, dim=1).real), 1),
    "rot90": (images(lambda s, y, x: torch.rot90(y, 1, (2, 3))), 1),
    "topk of tokens": (tokens(lambda s, y: y.topk(2, dim=1)[0]), 1),
    "gather": (tokens(lambda s, y: torch.gather(y, 1, picks(y, 3))), 1),
    "take_along_dim": (tokens(lambda s, y: torch.take_along_dim(y, picks(y, 1)[..., :1], 1)), 1),
    "scatter_add": (tokens(lambda s, y: torch.zeros_like(y).scatter_add(1, picks(y, 6), y)), 1),
    "index_add": (tokens(lambda s, y: torch.zeros_like(y).index_add(1, torch.tensor([0, 1, 1, 2, 2, 0]), y)), 1),
    "index_put": (tokens(lambda s, y: y.mean(1).index_put((torch.tensor([0]),), s.second(y).mean(1)[:1])), 1),
    "einsum with an ellipsis": (tokens(lambda s, y: torch.einsum("...i,oi->...o", y, s.second.weight)), 2),
    "einsum of three": (tokens(lambda s, y: torch.einsum("bti,oi,po->btp", y, s.w.weight, s.v.weight), 10), 3),
    "tensordot": (tokens(lambda s, y: torch.tensordot(y, s.second.weight.t(), 1)), 2),
    "bilinear": (tokens(lambda s, y: s.both(y, s.second(y)), 14), 3),
    "complex": (
        tokens(lambda s, y: torch.view_as_real(torch.complex(y, y) * torch.polar(y.abs(), s.second(y)))[..., 0]),
        None,
    ),
    "constant order": (images(lambda s, y, x: y[:, BACK]), 1),
    "constant order of index_select": (images(lambda s, y, x: y.index_select(1, torch.tensor(BACK))), 1),
    "repeat_interleave with output_size": (
        tokens(lambda s, y: y.repeat_interleave(2, dim=-1, output_size=32), 32),
        1,
    ),
    "cells": (tokens(cells), 3),
    "lstm with projection": (tokens(lambda s, y: s.lstm(y)[0], 12), 3),
    "noise of its own": (tokens(lambda s, y: y + torch.empty_like(y).exponential_() * torch.randn(16)), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_channels_pass(name):
    model, groups = CASES[name]
    x = IMAGES if hasattr(model, "conv") else TOKENS
    network = mp.trace(model, x)
    assert not network.uncovered
    assert groups is None or len(network.space) == groups
    assert len(network.space) > 0
    assert_cut_equals_mask(model, x, seeds=(0,))


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, y: F.cosine_similarity(y, s.second(y), dim=-1),
        lambda s, y: F.pairwise_distance(y[:, 0], s.second(y)[:, 0]),
        lambda s, y: torch.cdist(y, s.second(y)),
        lambda s, y: torch.cdist(y, s.second(y)[:1, :2], p=1),
    ],
)
def test_distances_contract(forward):
    model = net(lambda s, x: forward(s, s.enter(x)), enter=LINEAR(8, 16), second=LINEAR(16, 16))
    assert len(mp.trace(model, TOKENS).space) == 1
    assert_cut_equals_mask(model, TOKENS, seeds=(0,))


def test_heads_of_deformable_attention_stay_together():
    """Values and positions are sampled as [samples * heads, ...]: a head goes from both."""

    def forward(s, x):
        tokens = x.flatten(2).transpose(1, 2)
        values = s.values(tokens).reshape(2, 25, 4, 6).permute(0, 2, 3, 1).reshape(8, 6, 5, 5)
        places = s.places(tokens).tanh().reshape(2, 25, 4, 2).transpose(1, 2).reshape(8, 25, 1, 2)
        read = F.grid_sample(values, places, align_corners=False).reshape(2, 4, 6, 25)
        return s.out(read.flatten(1, 2).transpose(1, 2))

    model = net(forward, values=LINEAR(3, 24), places=LINEAR(3, 8), out=LINEAR(24, 2))
    (pruned, *_) = assert_cut_equals_mask(model, torch.randn(2, 3, 5, 5), seeds=(0, 1))
    heads = next(g for g in pruned.network.space if g.width == 4)
    assert {m.parameter for m in heads.members} >= {"values.weight", "places.weight", "out.weight"}


def test_spectral_norm_as_a_parametrization():
    """It takes the norm as a product of vectors, torch.vdot."""
    wrapped = nn.utils.parametrizations.spectral_norm(LINEAR(8, 16))
    model = nn.Sequential(wrapped, nn.ReLU(), LINEAR(16, 3)).eval()
    assert not mp.trace(model, TOKENS).uncovered
    assert_cut_equals_mask(model, TOKENS, seeds=(0,))


def test_positions_of_a_maximum_lock():
    model = tokens(lambda s, y: y * y.max(-1, keepdim=True)[1])
    assert "reduced here" in mp.trace(model, TOKENS).explain()


class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = CONV(3, 16, 3), CONV(16, 16, 3), CONV(16, 2, 1)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            y = self.b(torch.relu(self.a(x)))
            with torch.autocast("cpu", enabled=False):
                y = y.float() * 2
        return self.out(y.float())


def test_autocast_regions():
    model = Autocast().eval()
    assert [g.width for g in mp.trace(model, IMAGES).space] == [16, 16]
    assert_cut_equals_mask(model, IMAGES, seeds=(0,))
    network = mp.trace(model, IMAGES)
    with pytest.raises(RuntimeError):
        network.run(torch.randn(2, 4, 8, 8))
    assert not torch.is_autocast_enabled("cpu")


def test_autocast_regions_are_saved(tmp_path):
    result = mp.prune(Autocast().eval(), IMAGES, budget="macs=60%", form="graph", progress=False)
    result.save(tmp_path / "net")
    assert torch.equal(mp.load(tmp_path / "net")(IMAGES), result.model(IMAGES))


# ------------------------------------------------------------------------------------------ groupings that meet


class Streams(nn.Module):
    """Two streams with norms of their own, concatenated under a norm whose groups lie across (diffusion UNets)."""

    def __init__(self, a, b, groups):
        super().__init__()
        self.x, self.y = CONV(3, a, 3, padding=1), CONV(3, b, 3, padding=1)
        self.nx, self.ny, self.n = nn.GroupNorm(groups, a), nn.GroupNorm(groups, b), nn.GroupNorm(groups, a + b)
        self.o, self.ox, self.oy = CONV(a + b, 3, 1), CONV(a, 3, 1), CONV(b, 3, 1)

    def forward(self, image):
        x, y = self.x(image), self.y(image)
        return self.o(self.n(torch.cat([x, y], 1))) + self.ox(self.nx(x)) + self.oy(self.ny(y))


class Grouped(nn.Module):
    def __init__(self, a, b, channels=24):
        super().__init__()
        self.enter, self.out = CONV(3, channels, 1), CONV(channels, 4, 1)
        self.a, self.b = (CONV(channels, channels, 3, padding=1, groups=g) for g in (a, b))

    def forward(self, x):
        y = self.enter(x)
        return self.out(self.a(y) + self.b(y))


def normed(first, second):
    return nn.Sequential(CONV(3, 16, 3), nn.GroupNorm(first, 16), CONV(16, 16, 3, groups=second), CONV(16, 4, 1))


@pytest.mark.parametrize(
    ("model", "widths"),
    [
        (Streams(16, 8, 4), [2, 1]),  # every second channel, everywhere
        (Streams(32, 64, 8), [4, 2]),
        (normed(4, 8), [2, 4, 2, 2]),
        (normed(8, 4), [2, 4, 2, 4]),
        (normed(4, 16), [4, 4]),
        (Grouped(4, 8), [3, 4, 2, 3]),
        (Grouped(3, 4), [2, 2]),
        (Grouped(4, 6), [2, 2]),
    ],
    ids=str,
)
def test_groupings_on_one_dimension(model, widths):
    network = mp.trace(model.eval(), IMAGES)
    assert [g.width for g in network.space] == widths
    assert network.space.over_merged == 0
    assert_cut_equals_mask(model, IMAGES, seeds=(0, 1))


# ------------------------------------------------------------------------------------------ numbers that count channels

COUNTS = {  # whole numbers among the arguments of operators with a rule, and who follows the channels
    "followed": "groups num_groups size sizes split_size split_sizes split_sections output_size normalized_shape pad "
    "padding shape start end length index repeats sections indices_or_sections indices chunks",
    "no channels": "dim dims dim0 dim1 dims_self dims_other dimension source destination start_dim end_dim axis axis0 "
    "axis1 stride dilation output_padding kernel_size upscale_factor downscale_factor diagonal offset k n step shifts "
    "num_layers mode padding_idx num_classes correction dtype steps high low ord p self other from to a b m t el idx "
    "max row col out_dtype divisor_override",
    "space": "scales scale_factors interpolation_mode padding_mode compute_mode s block_size path axes",
    "seed or layout": "storage_offset seed reduction memory_format layout",
}


def test_whole_numbers_that_may_count_channels_are_known():
    """A new operator's argument has to be sorted in: does it count what a cut drops?"""
    known = set(" ".join(COUNTS.values()).split())
    unknown = set()
    for name in RULES:
        packet = getattr(torch.ops.aten, name, None)
        for overload in packet.overloads() if packet is not None else ():
            schema = getattr(packet, overload)._schema
            if any(a.is_out for a in schema.arguments):
                continue
            numbers = {a.name for a in schema.arguments if "int" in str(a.type).lower() and "Tensor" not in str(a.type)}
            unknown |= {f"{name}.{overload}: {n}" for n in numbers - known}
    assert not unknown
