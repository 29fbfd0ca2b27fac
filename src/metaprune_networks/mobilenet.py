"""MobileNetV1 (Howard et al., arXiv 1704.04861, table 1) and MobileNetV2 (Sandler et al., 1801.04381, table 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metaprune_networks.layers import explicit_widths, init_cnn, scale_by_eight, scale_floor

_V1_WIDTHS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
_V1_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)

_V2_WIDTHS = (32, 16, 24, 32, 64, 96, 160, 320, 1280)  # stem, seven stages, head
_V2_STAGES = ((1, 1, 1), (6, 2, 2), (6, 3, 2), (6, 4, 2), (6, 3, 1), (6, 3, 2), (6, 1, 1))  # expansion, depth, stride


class SeparableBlock(nn.Module):
    """Depthwise 3x3 then pointwise 1x1: [B, in, H, W] -> [B, out, H / stride, W / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.depthwise(x)))
        return self.relu(self.bn2(self.pointwise(x)))


class MobileNetV1(nn.Module):
    """A 3x3 stem and 13 separable blocks: [B, in_channels, H, W] -> [B, num_classes]."""

    def __init__(self, widths: Sequence[int], num_classes: int, in_channels: int, stem_stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, stride=stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(
            *(SeparableBlock(widths[i], widths[i + 1], stride) for i, stride in enumerate(_V1_STRIDES))
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        init_cnn(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def mobilenet_v1(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    widths: Sequence[int] | None = None,
    stem_stride: int = 2,
) -> MobileNetV1:
    """MobileNetV1; `widths` are the stem's and the 13 blocks' outputs (14), default the paper's times `width`, floored.

    `stem_stride=1` suits images of about 32 pixels.
    """
    default = [scale_floor(c, width) for c in _V1_WIDTHS]
    return MobileNetV1(explicit_widths(widths, default, "mobilenet_v1"), num_classes, in_channels, stem_stride)


def _conv_bn_relu6(in_channels: int, out_channels: int, kernel: int, stride: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Expand 1x1 (unless `mid` is the input), depthwise 3x3, linear 1x1; adds the input where the shapes agree."""

    def __init__(self, in_channels: int, mid: int, out_channels: int, stride: int, *, expand: bool):
        super().__init__()
        layers: list[nn.Module] = [_conv_bn_relu6(in_channels, mid, 1, 1)] if expand else []
        layers += [
            _conv_bn_relu6(mid, mid, 3, stride, groups=mid),
            nn.Conv2d(mid, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """Stem, 17 inverted residual blocks, head: [B, in_channels, H, W] -> [B, num_classes]."""

    def __init__(
        self,
        widths: Sequence[int],
        num_classes: int,
        in_channels: int,
        dropout: float,
        stem_stride: int,
        expand_first: bool,
    ):
        super().__init__()
        channels = widths[0]
        layers: list[nn.Module] = [_conv_bn_relu6(in_channels, channels, 3, stem_stride)]
        for out, (expansion, depth, stride) in zip(widths[1:-1], _V2_STAGES, strict=True):
            for index in range(depth):
                layers.append(
                    InvertedResidual(
                        channels,
                        channels * expansion,
                        out,
                        stride if index == 0 else 1,
                        expand=expansion != 1 or expand_first,
                    )
                )
                channels = out
        layers.append(_conv_bn_relu6(channels, widths[-1], 1, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(widths[-1], num_classes))
        init_cnn(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def mobilenet_v2(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    widths: Sequence[int] | None = None,
    dropout: float = 0.2,
    stem_stride: int = 2,
    expand_first: bool = False,
) -> MobileNetV2:
    """MobileNetV2; `widths` are stem, seven stages, head (9), default the paper's times `width`, rounded to 8.

    The head never falls below 1280, as in the paper. `expand_first` gives the first block, which does not widen its
    input, an expansion convolution too (the MobileNetV2 of MetaPruning's authors).
    """
    default = [scale_by_eight(c, width) for c in _V2_WIDTHS[:-1]]
    default.append(scale_by_eight(_V2_WIDTHS[-1], max(1.0, width)))
    chosen = explicit_widths(widths, default, "mobilenet_v2")
    return MobileNetV2(chosen, num_classes, in_channels, dropout, stem_stride, expand_first)
