"""VGG-19 with batch normalisation: the CIFAR form (one linear layer) and the ImageNet form (three).

Source: Simonyan and Zisserman (arXiv 1409.1556), configuration E.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metaprune_networks.layers import explicit_widths, init_cnn, scale_floor

_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512)
_STAGE_ENDS = (1, 3, 7, 11, 15)  # index of each stage's last convolution


def _features(widths: Sequence[int], in_channels: int, *, bias: bool, last_pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, out in enumerate(widths):
        layers += [nn.Conv2d(in_channels, out, 3, padding=1, bias=bias), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
        if index in _STAGE_ENDS and (last_pool or index != _STAGE_ENDS[-1]):
            layers.append(nn.MaxPool2d(2, 2))
        in_channels = out
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """Convolutions, pooling to a fixed size, classifier: [B, in_channels, H, W] -> [B, num_classes]."""

    def __init__(self, features: nn.Sequential, pool_size: int, classifier: nn.Module):
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(pool_size)
        self.classifier = classifier
        init_cnn(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def _widths(widths: Sequence[int] | None, width: float) -> tuple[int, ...]:
    return explicit_widths(widths, [scale_floor(c, width) for c in _WIDTHS], "vgg19")


def vgg19_bn(
    *, num_classes: int = 10, in_channels: int = 3, width: float = 1.0, widths: Sequence[int] | None = None
) -> VGG:
    """CIFAR form: 16 convolutions without bias, four max pools, average pool, one linear layer.

    The fifth max pool is left to the average pool, so that 28x28 works as well as 32x32.
    """
    chosen = _widths(widths, width)
    features = _features(chosen, in_channels, bias=False, last_pool=False)
    return VGG(features, 1, nn.Linear(chosen[-1], num_classes))
