"""Families of small networks that a scoring rule is learned on: drawn at random, rebuilt from plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metaprune.core.errors import ConfigError, closest
from metaprune.models import create

IMAGE_SIZE = 16
Options = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """`draw` chooses sizes as plain data; `build` makes the network of them for grey images and so many classes."""

    draw: Callable[[np.random.Generator], Options]
    build: Callable[..., nn.Module]


def build_network(family: str, options: Mapping[str, Any], classes: int) -> nn.Module:
    """Build a network of a family: [B, 1, 16, 16] -> [B, classes].

    Raises:
        ConfigError: an unknown family.
    """
    if family not in FAMILIES:
        raise ConfigError(f"the zoo has no family {family!r}.{closest(family, tuple(FAMILIES))}")
    return FAMILIES[family].build(classes=classes, **options)


def _widths(draw: np.random.Generator, count: int, low: int, high: int) -> list[int]:
    return [int(w) for w in draw.integers(low, high + 1, count)]


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


def _classifier(channels: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def _strides(count: int) -> list[int]:
    """Two halvings, wherever there are layers enough."""
    return [2 if i in (1, 3) else 1 for i in range(count)]


# ---------------------------------------------------------------------------------------------- plain, VGG-like


def _draw_plain(draw: np.random.Generator) -> Options:
    count = int(draw.integers(3, 6))
    return {"widths": [w + 4 * i for i, w in enumerate(_widths(draw, count, 8, 24))]}


def _plain(widths: Sequence[int], classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in zip([1, *widths], widths, _strides(len(widths)), strict=False):
        layers += [*_conv(inputs, outputs, stride=stride), nn.ReLU()]
    return nn.Sequential(*layers, *_classifier(widths[-1], classes))


def _draw_vgg(draw: np.random.Generator) -> Options:
    return {
        "widths": [w + 6 * i for i, w in enumerate(_widths(draw, 4, 8, 18))],
        "hidden": _widths(draw, int(draw.integers(1, 3)), 24, 64),
        "norm": bool(draw.integers(2)),
    }


def _vgg(widths: Sequence[int], hidden: Sequence[int], norm: bool, classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    inputs = 1
    for i, outputs in enumerate(widths):
        layers += _conv(inputs, outputs) if norm else [nn.Conv2d(inputs, outputs, 3, padding=1)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)] if i % 2 else [nn.ReLU()]
        inputs = outputs
    layers.append(nn.Flatten())
    inputs *= (IMAGE_SIZE // 4) ** 2
    for outputs in hidden:
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers, nn.Linear(inputs, classes))


# ---------------------------------------------------------------------------------------------- sums


class Sum(nn.Module):
    """A branch and what goes past it, added; `after` follows the sum."""

    def __init__(self, branch: nn.Module, past: nn.Module, after: nn.Module):
        super().__init__()
        self.branch, self.past, self.after = branch, past, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.branch(x) + self.past(x))


def _draw_residual(draw: np.random.Generator) -> Options:
    blocks = int(draw.integers(3, 6))
    stream, outputs = int(draw.integers(8, 17)), []
    for i in range(blocks):
        stream = stream if i % 2 == 0 else int(draw.integers(stream, 2 * stream + 1))
        outputs.append(stream)
    return {"stem": outputs[0], "hidden": _widths(draw, blocks, 8, 28), "outputs": outputs}


def _residual(stem: int, hidden: Sequence[int], outputs: Sequence[int], classes: int) -> nn.Module:
    layers: list[nn.Module] = [*_conv(1, stem), nn.ReLU()]
    stream = stem
    for i, (middle, out) in enumerate(zip(hidden, outputs, strict=True)):
        stride = 2 if i in (1, 3) else 1
        past = nn.Identity() if (stream, stride) == (out, 1) else nn.Sequential(*_conv(stream, out, 1, stride))
        branch = nn.Sequential(*_conv(stream, middle, stride=stride), nn.ReLU(), *_conv(middle, out))
        layers.append(Sum(branch, past, nn.ReLU()))
        stream = out
    return nn.Sequential(*layers, *_classifier(stream, classes))


# ---------------------------------------------------------------------------------------------- depthwise


def _draw_separable(draw: np.random.Generator) -> Options:
    blocks = int(draw.integers(3, 6))
    return {
        "stem": int(draw.integers(8, 17)),
        "outputs": _widths(draw, blocks, 12, 28),
        "expansion": int(draw.choice([1, 2, 3])),
    }


def _separable(stem: int, outputs: Sequence[int], expansion: int, classes: int) -> nn.Module:
    """Depthwise and pointwise (MobileNetV1); with an expansion above 1 inverted bottlenecks (MobileNetV2)."""
    layers: list[nn.Module] = [*_conv(1, stem), nn.ReLU()]
    inputs = stem
    for i, out in enumerate(outputs):
        stride = 2 if i in (1, 2) else 1
        if expansion == 1:
            layers += [
                *_conv(inputs, inputs, stride=stride, groups=inputs),
                nn.ReLU(),
                *_conv(inputs, out, 1),
                nn.ReLU(),
            ]
        else:
            wide = expansion * inputs
            depthwise = [*_conv(wide, wide, stride=stride, groups=wide), nn.ReLU()]
            layers += [*_conv(inputs, wide, 1), nn.ReLU(), *depthwise, *_conv(wide, out, 1)]
        inputs = out
    return nn.Sequential(*layers, *_classifier(inputs, classes))


# ---------------------------------------------------------------------------------------------- concatenations


class Grown(nn.Module):
    """What comes in, and what a branch makes of it, side by side."""

    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.branch(x)], dim=1)


def _draw_dense(draw: np.random.Generator) -> Options:
    return {
        "stem": int(draw.integers(8, 17)),
        "growth": [_widths(draw, int(draw.integers(2, 4)), 6, 14) for _ in range(2)],
        "squeeze": int(draw.integers(14, 25)),
    }


def _dense(stem: int, growth: Sequence[Sequence[int]], squeeze: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = [*_conv(1, stem, stride=2), nn.ReLU()]
    width = stem
    for i, stage in enumerate(growth):
        if i:
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, squeeze, 1, bias=False), nn.AvgPool2d(2)]
            width = squeeze
        for grown in stage:
            convolution = nn.Conv2d(width, grown, 3, padding=1, bias=False)
            layers.append(Grown(nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), convolution)))
            width += grown
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), *_classifier(width, classes))


# ---------------------------------------------------------------------------------------------- attention


def _draw_transformer(draw: np.random.Generator) -> Options:
    heads, depth = int(draw.integers(2, 4)), int(draw.integers(2, 4))
    return {"dim": heads * int(draw.choice([8, 12])), "num_heads": heads, "hidden": _widths(draw, depth, 32, 80)}


def _transformer(dim: int, num_heads: int, hidden: Sequence[int], classes: int) -> nn.Module:
    sizes = {"image_size": IMAGE_SIZE, "patch_size": 4, "in_channels": 1, "num_classes": classes}
    return create("zoo:vit_micro", dim=dim, depth=len(hidden), num_heads=num_heads, widths=list(hidden), **sizes)


FAMILIES: dict[str, Family] = {
    "plain": Family(_draw_plain, _plain),
    "vgg": Family(_draw_vgg, _vgg),
    "residual": Family(_draw_residual, _residual),
    "separable": Family(_draw_separable, _separable),
    "dense": Family(_draw_dense, _dense),
    "transformer": Family(_draw_transformer, _transformer),
}
