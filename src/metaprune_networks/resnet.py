"""Residual networks: the CIFAR family of the ResNet paper and the ImageNet family.

Sources: He et al., Deep Residual Learning (arXiv 1512.03385): section 4.2 for the CIFAR networks of depth 6n+2 and
shortcut options A and B; table 1 for ImageNet. The bottleneck has its stride in the 3x3 convolution, as the networks
that packages ship have. Parameter names are the usual ones, so that published state dicts load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaprune.core.errors import ConfigError
from metaprune_networks.layers import explicit_widths, init_cnn, scale_floor

Block = Callable[..., nn.Module]


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zero channels before and after; no parameters.

    Input [B, C, H, W], output [B, before + C + after, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        if out_channels < in_channels:
            raise ConfigError(
                f'shortcut "A" pads and cannot go from {in_channels} to {out_channels} channels: '
                'use shortcut="B" or widths that do not shrink.'
            )
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


def _shortcut(in_channels: int, out_channels: int, stride: int, option: str) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    make = PadShortcut if option == "A" else _projection
    return make(in_channels, out_channels, stride)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, in, H, W] -> [B, out, H / stride, W / stride]."""

    def __init__(self, in_channels: int, mid: int, out: int, stride: int, option: str):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, mid, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(mid, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = _shortcut(in_channels, out, stride, option)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 and a shortcut: [B, in, H, W] -> [B, out, H / stride, W / stride]."""

    def __init__(self, in_channels: int, mid: int, out: int, stride: int, option: str):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out, stride, option)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def _stage(block: Block, in_channels: int, mid: int, out: int, depth: int, stride: int, option: str) -> nn.Sequential:
    blocks = [block(in_channels, mid, out, stride, option)]
    blocks += [block(out, mid, out, 1, option) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


class CifarResNet(nn.Module):
    """Depth 6n+2 with three stages of basic blocks; images [B, in_channels, H, W] -> logits [B, num_classes]."""

    def __init__(self, depth: int, widths: Sequence[int], num_classes: int, in_channels: int, shortcut: str):
        super().__init__()
        w1, w2, w3 = widths
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, w1, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(w1)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(BasicBlock, w1, w1, w1, blocks, 1, shortcut)
        self.layer2 = _stage(BasicBlock, w1, w2, w2, blocks, 2, shortcut)
        self.layer3 = _stage(BasicBlock, w2, w3, w3, blocks, 2, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(w3, num_classes)
        init_cnn(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(self.avgpool(x), 1))


class ResNet(nn.Module):
    """Four stages; images [B, in_channels, H, W] -> logits [B, num_classes].

    `small_stem` replaces the 7x7 stride-2 convolution and the pooling by one 3x3 convolution (CIFAR sizes).
    """

    def __init__(
        self,
        block: Block,
        depths: Sequence[int],
        stem: int,
        mids: Sequence[int],
        outs: Sequence[int],
        *,
        num_classes: int,
        in_channels: int,
        small_stem: bool,
    ):
        super().__init__()
        kernel, stride = (3, 1) if small_stem else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, stem, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small_stem else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(block, stem, mids[0], outs[0], depths[0], 1, "B")
        self.layer2 = _stage(block, outs[0], mids[1], outs[1], depths[1], 2, "B")
        self.layer3 = _stage(block, outs[1], mids[2], outs[2], depths[2], 2, "B")
        self.layer4 = _stage(block, outs[2], mids[3], outs[3], depths[3], 2, "B")
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(outs[3], num_classes)
        init_cnn(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def cifar_resnet(
    depth: int,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: float = 1.0,
    widths: Sequence[int] | None = None,
    shortcut: str = "A",
) -> CifarResNet:
    """ResNet of depth 6n+2 for small images (resnet8, 20, 32, 56, 110).

    Args:
        width: multiplies 16-32-64, rounded down; not used when `widths` (three stages) is given.
        shortcut: "A" pads channels with zeros (no parameters), "B" projects with a 1x1 convolution.

    Raises:
        ConfigError: depth is not 6n+2, unknown shortcut, wrong widths.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ConfigError(f"A CIFAR ResNet has depth 6n+2 (8, 14, 20, 26, ...), not {depth}.")
    if shortcut not in ("A", "B"):
        raise ConfigError(f'shortcut is "A" (zero padding) or "B" (projection), not {shortcut!r}.')
    default = [scale_floor(c, width) for c in (16, 32, 64)]
    return CifarResNet(depth, explicit_widths(widths, default, f"resnet{depth}"), num_classes, in_channels, shortcut)


def resnet18(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    widths: Sequence[int] | None = None,
    small_stem: bool = False,
) -> ResNet:
    """ResNet-18; `widths` are the four stages' (the stem takes the first), default 64-128-256-512 times `width`."""
    default = [scale_floor(c, width) for c in (64, 128, 256, 512)]
    stages = explicit_widths(widths, default, "resnet18")
    return ResNet(
        BasicBlock,
        (2, 2, 2, 2),
        stages[0],
        stages,
        stages,
        num_classes=num_classes,
        in_channels=in_channels,
        small_stem=small_stem,
    )


def resnet50(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    widths: Sequence[int] | None = None,
    small_stem: bool = False,
) -> ResNet:
    """ResNet-50; `widths` are the four inner widths (a block's output has four times as many, the stem the first).

    With `width` every channel count of the standard network is multiplied and rounded down on its own.
    """
    base = (64, 128, 256, 512)
    mids = explicit_widths(widths, [scale_floor(c, width) for c in base], "resnet50")
    outs = [4 * m for m in mids] if widths is not None else [scale_floor(4 * c, width) for c in base]
    return ResNet(
        Bottleneck,
        (3, 4, 6, 3),
        mids[0],
        mids,
        outs,
        num_classes=num_classes,
        in_channels=in_channels,
        small_stem=small_stem,
    )
