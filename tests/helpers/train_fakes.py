"""Data and networks of the training and recovery tests: tiny, separable, deterministic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from metaprune.core.rng import Rng
from metaprune.data.types import NO_SAMPLES, Data


@dataclass(frozen=True)
class FakeSplit:
    inputs: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, batch_size, *, device="cpu", rng=None, augment=False, drop_last=False):
        order = torch.arange(len(self)) if rng is None else torch.randperm(len(self), generator=rng.torch())
        noise = rng.child("augment").torch() if augment and rng is not None else None
        for index in order.split(batch_size):
            if drop_last and len(index) < batch_size:
                return
            inputs = self.inputs[index]
            if noise is not None:
                inputs = inputs + 0.01 * torch.randn(inputs.shape, generator=noise)
            yield inputs.to(device), self.labels[index].to(device)


def FakeData(train: FakeSplit | None, val: FakeSplit | None = None, name: str = "fake") -> Data:
    """Data of the given splits, labels of three classes."""
    return Data(name, train or NO_SAMPLES, val or NO_SAMPLES, None, 3, (), ("a", "b", "c"), "")


def blobs(samples: int, *, seed: int = 0, shape: tuple[int, ...] = (8,), classes: int = 3) -> FakeSplit:
    """Well separated Gaussian blobs; the centres do not depend on `seed`."""
    centres = 2.0 * torch.randn(classes, *shape, generator=Rng(99).torch())
    generator = Rng(seed).child("blobs").torch()
    labels = torch.randint(classes, (samples,), generator=generator)
    return FakeSplit(centres[labels] + 0.5 * torch.randn(samples, *shape, generator=generator), labels)


def data(samples: int = 96, shape: tuple[int, ...] = (8,)) -> Data:
    return FakeData(blobs(samples, seed=1, shape=shape), blobs(64, seed=2, shape=shape))


def mlp(seed: int = 0) -> nn.Sequential:
    with Rng(seed).child("mlp").torch_global():
        return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def cnn(seed: int = 0) -> nn.Sequential:
    with Rng(seed).child("cnn").torch_global():
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 4, 3),
            nn.BatchNorm2d(4, momentum=0.3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(4, 3),
        )


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
