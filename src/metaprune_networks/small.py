"""Small networks for 28x28 images: an MLP and LeNet-5 in the 20-50-500 form of the pruning literature."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from metaprune.core.errors import ConfigError
from metaprune_networks.layers import explicit_widths, init_cnn, scale_floor, square


class MLP(nn.Module):
    """Flatten, then linear layers with ReLU between: [B, ...] -> [B, num_classes]."""

    def __init__(self, sizes: Sequence[int]):
        super().__init__()
        layers: list[nn.Module] = []
        for index, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            layers += [nn.ReLU()] if index else []
            layers.append(nn.Linear(fan_in, fan_out))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(torch.flatten(x, 1))


class LeNet(nn.Module):
    """Two 5x5 convolutions with max pooling and two linear layers: [B, in_channels, H, W] -> [B, num_classes]."""

    def __init__(self, widths: Sequence[int], num_classes: int, in_channels: int, image_size: tuple[int, int]):
        super().__init__()
        c1, c2, hidden = widths
        height, width = (((s - 4) // 2 - 4) // 2 for s in image_size)
        if min(height, width) < 1:
            raise ConfigError(f"lenet needs images of at least 16x16 pixels, not {image_size[0]}x{image_size[1]}.")
        self.conv1 = nn.Conv2d(in_channels, c1, 5)
        self.conv2 = nn.Conv2d(c1, c2, 5)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        self.fc1 = nn.Linear(c2 * height * width, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)
        init_cnn(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        return self.fc2(self.relu(self.fc1(torch.flatten(x, 1))))


def mlp(
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int | Sequence[int] = 28,
    width: float = 1.0,
    widths: Sequence[int] | None = None,
) -> MLP:
    """Build an MLP with hidden layers of `widths` units (any number of them), default 300-100 times `width`."""
    height, columns = square(image_size)
    hidden = [scale_floor(c, width) for c in (300, 100)] if widths is None else [int(w) for w in widths]
    if any(w < 1 for w in hidden):
        raise ConfigError(f"mlp takes positive hidden widths, not {hidden}.")
    return MLP([in_channels * height * columns, *hidden, num_classes])


def lenet(
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int | Sequence[int] = 28,
    width: float = 1.0,
    widths: Sequence[int] | None = None,
) -> LeNet:
    """LeNet-5; `widths` are two convolutions and the hidden layer, default 20-50-500 times `width`."""
    default = [scale_floor(c, width) for c in (20, 50, 500)]
    return LeNet(explicit_widths(widths, default, "lenet"), num_classes, in_channels, square(image_size))
