"""MobileNetV1's form in seven stages, for the 107 letters of `builtin:glyphs`."""

from itertools import pairwise

from torch import nn

WIDTHS, STRIDES = (32, 64, 64, 128, 128, 256, 256), (2, 1, 2, 1, 2, 1)


def network() -> nn.Module:
    """Make the network with random weights: [N, 1, 28, 28] -> [N, 107]."""
    layers = _unit(1, WIDTHS[0], 3, 1)
    for (c_in, c_out), stride in zip(pairwise(WIDTHS), STRIDES, strict=True):
        layers += _unit(c_in, c_in, 3, stride, groups=c_in) + _unit(c_in, c_out, 1, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 107))


def _unit(c_in: int, c_out: int, kernel: int, stride: int, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
