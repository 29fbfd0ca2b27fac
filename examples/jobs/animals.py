"""Segmentation: which pixels of a busy ground belong to an animal; with a small U-Net."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from metaprune.data import load_data

SIDE = 40
GROUND, ANIMAL = 0, 1


def scenes(split, count: int, seed: int) -> TensorDataset:
    """`count` images [count, 1, SIDE, SIDE], an animal somewhere on smooth noise, and maps [count, SIDE, SIDE]."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(split), generator=generator)[:count]
    noise = torch.rand(count, 1, SIDE // 4, SIDE // 4, generator=generator)
    images = functional.interpolate(noise, size=(SIDE, SIDE), mode="bilinear")
    maps = torch.full((count, SIDE, SIDE), GROUND)
    tops, lefts = torch.randint(SIDE - 28 + 1, (2, count), generator=generator).tolist()
    for n, (i, top, left) in enumerate(zip(chosen.tolist(), tops, lefts, strict=True)):
        animal = split.images[i, 0].float() / 255
        inside = animal > 0.1
        images[n, 0, top : top + 28, left : left + 28][inside] = animal[inside]
        maps[n, top : top + 28, left : left + 28][inside] = ANIMAL
    return TensorDataset(images - 0.5, maps)


def data():
    """(train, val, test)."""
    source = load_data("builtin:animal-shapes")
    parts = [(source.train, 1_500), (source.val, 150), (source.test, 500)]
    return tuple(scenes(split, count, seed) for seed, (split, count) in enumerate(parts))


class UNet(nn.Module):
    """Three resolutions, with skips that are concatenated."""

    def __init__(self, classes: int = 2, width: int = 12):
        super().__init__()
        self.down = nn.ModuleList([block(1, width), block(width, 2 * width)])
        self.bottom = block(2 * width, 4 * width)
        self.up = nn.ModuleList([block(6 * width, 2 * width), block(3 * width, width)])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes, H, W] for images [B, 1, H, W]."""
        skips = []
        for down in self.down:
            x = down(x)
            skips.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.bottom(x)
        for up, skip in zip(self.up, reversed(skips), strict=True):
            x = up(torch.cat([functional.interpolate(x, scale_factor=2.0), skip], dim=1))
        return self.head(x)


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions with BatchNorm."""
    layers = []
    for n in (inputs, outputs):
        layers += [nn.Conv2d(n, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)
