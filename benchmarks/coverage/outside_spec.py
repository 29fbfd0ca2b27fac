"""Small networks of other people's tests and threads, written as a forward function and the layers it calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from metaprune.testing.networks import Lambda

Built = tuple[nn.Module, tuple, dict[str, Any]]
Builder = Callable[[], Built]
Layer = Callable[[], nn.Module]


def spec(forward: Callable[..., Any], *shapes: tuple[int, ...], **layers: Layer) -> Builder:
    """A builder of `forward(layers, *inputs)`, whose inputs are normal numbers of these shapes."""

    def build() -> Built:
        model = Lambda(forward, **{name: layer() for name, layer in layers.items()})
        return model, draw(*shapes), {}

    return build


def draw(*shapes: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def conv(a: int, b: int, kernel: int = 3, **options: Any) -> Layer:
    return partial(nn.Conv2d, a, b, kernel, **options)


def same(a: int, b: int, kernel: int = 3, **options: Any) -> Layer:
    """A convolution that keeps height and width."""
    return partial(nn.Conv2d, a, b, kernel, padding=kernel // 2, **options)


def linear(a: int, b: int, **options: Any) -> Layer:
    return partial(nn.Linear, a, b, **options)


def norm(width: int) -> Layer:
    return partial(nn.BatchNorm2d, width)


def chain(*layers: Layer) -> Layer:
    return lambda: nn.Sequential(*(layer() for layer in layers))


def pooled(x: torch.Tensor) -> torch.Tensor:
    """Mean over height and width."""
    return x.mean((2, 3))


def torchvision_model(name: str, size: int) -> Built:
    import torchvision

    return getattr(torchvision.models, name)(num_classes=10), draw((2, 3, size, size)), {}
