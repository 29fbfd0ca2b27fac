"""A detector without labels: mosaics of smileys for CenterFace, whose own outputs are the target."""

import torch
from torch.nn import functional
from torch.utils.data import Dataset

from metaprune.data import load_data


class Mosaics(Dataset):
    """`count` mosaics of four emoji, float32 [3, 64, 64] in 0..255."""

    def __init__(self, split, label: int, count: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        faces = (split.labels == label).nonzero().flatten()
        self.images = split.images
        self.chosen = faces[torch.randint(len(faces), (count, 4), generator=generator)]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> torch.Tensor:
        a, b, c, d = functional.avg_pool2d(self.images[self.chosen[index]].float(), 2)
        return torch.cat([torch.cat([a, b], dim=2), torch.cat([c, d], dim=2)], dim=1)


def data():
    """(train, val, test)."""
    source = load_data("builtin:emoji")
    label = source.classes.index("Smileys & Emotion")
    parts = [(source.train, 256), (source.val, 32), (source.test, 128)]
    return tuple(Mosaics(split, label, count, seed) for seed, (split, count) in enumerate(parts))
