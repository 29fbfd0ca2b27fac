"""Regression: by how much a piece of clothing is turned."""

import math

import torch
from torch.nn import functional
from torch.utils.data import TensorDataset

from metaprune.data import load_data


def turned(split, count: int, seed: int) -> TensorDataset:
    """`count` images turned by up to 60 degrees, [count, 1, 28, 28], and the angles in radians [count]."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(split), generator=generator)[:count]
    angles = (torch.rand(count, generator=generator) * 2 - 1) * math.pi / 3
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros(count)
    matrices = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], dim=1)
    grid = functional.affine_grid(matrices, [count, 1, 28, 28], align_corners=False)
    images = functional.grid_sample(split.images[chosen].float() / 255, grid, align_corners=False)
    return TensorDataset(images - 0.5, angles)


def data():
    """(train, val, test)."""
    source = load_data("builtin:fashion-mnist")
    parts = [(source.train, 4_000), (source.val, 250), (source.test, 1_000)]
    return tuple(turned(split, count, seed) for seed, (split, count) in enumerate(parts))
