"""Multi-label: two pieces of clothing side by side, and which kinds there are."""

import torch
from torch.utils.data import TensorDataset

from metaprune.data import load_data


def pairs(split, count: int, seed: int) -> TensorDataset:
    """`count` pairs of images as [count, 1, 28, 56] with labels [count, 10], one or two of them set."""
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randint(len(split), (2, count), generator=generator)
    images = torch.cat([split.images[left], split.images[right]], dim=3).float() / 255 - 0.5
    labels = torch.zeros(count, 10)
    for side in (left, right):
        labels[torch.arange(count), split.labels[side]] = 1
    return TensorDataset(images, labels)


def data():
    """(train, val, test)."""
    source = load_data("builtin:fashion-mnist")
    parts = [(source.train, 3_000), (source.val, 250), (source.test, 1_000)]
    return tuple(pairs(split, count, seed) for seed, (split, count) in enumerate(parts))
