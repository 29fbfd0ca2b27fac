"""The zoo: networks by name, each with the input shape it was designed for."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from metaprune.core.errors import ConfigError, closest
from metaprune_networks.layers import square
from metaprune_networks.mobilenet import mobilenet_v1, mobilenet_v2
from metaprune_networks.resnet import cifar_resnet, resnet18, resnet50
from metaprune_networks.small import lenet, mlp
from metaprune_networks.vgg import vgg19_bn
from metaprune_networks.vit import vision_transformer


@dataclass(frozen=True)
class ZooEntry:
    """`build(**options)` makes the network; `input_shape` is (channels, height, width) with default options."""

    build: Callable[..., nn.Module]
    input_shape: tuple[int, int, int]

    def options(self) -> tuple[str, ...]:
        """Name the keyword arguments that `build` accepts."""
        return tuple(inspect.signature(self.build).parameters)


_CIFAR, _GREY, _IMAGENET = (3, 32, 32), (1, 28, 28), (3, 224, 224)


def _vit(**defaults: Any) -> Callable[..., nn.Module]:
    return functools.partial(vision_transformer, **defaults)


def _resnet(depth: int, **defaults: Any) -> Callable[..., nn.Module]:
    def build(**options: Any) -> nn.Module:
        return cifar_resnet(depth, **{**defaults, **options})

    known = [p for p in inspect.signature(cifar_resnet).parameters.values() if p.name != "depth"]
    build.__signature__ = inspect.Signature(known)  # type: ignore[attr-defined]
    return build


_ZOO: dict[str, ZooEntry] = {
    "resnet8": ZooEntry(_resnet(8, in_channels=1, shortcut="B"), _GREY),
    "resnet20": ZooEntry(_resnet(20), _CIFAR),
    "resnet32": ZooEntry(_resnet(32), _CIFAR),
    "resnet56": ZooEntry(_resnet(56), _CIFAR),
    "resnet110": ZooEntry(_resnet(110), _CIFAR),
    "resnet18_cifar": ZooEntry(functools.partial(resnet18, num_classes=10, small_stem=True), _CIFAR),
    "resnet18": ZooEntry(resnet18, _IMAGENET),
    "resnet50": ZooEntry(resnet50, _IMAGENET),
    "vgg19_bn": ZooEntry(vgg19_bn, _CIFAR),
    "mobilenet_v1": ZooEntry(mobilenet_v1, _IMAGENET),
    "mobilenet_v2": ZooEntry(mobilenet_v2, _IMAGENET),
    "vit_tiny": ZooEntry(_vit(dim=192, depth=12, num_heads=3), _IMAGENET),
    "vit_b16": ZooEntry(_vit(dim=768, depth=12, num_heads=12), _IMAGENET),
    "vit_micro": ZooEntry(
        _vit(dim=64, depth=4, num_heads=4, patch_size=4, image_size=28, in_channels=1, num_classes=10), _GREY
    ),
    "lenet": ZooEntry(lenet, _GREY),
    "mlp": ZooEntry(mlp, _GREY),
}


def zoo_names() -> tuple[str, ...]:
    """List the names that `create("zoo:NAME")` knows, sorted."""
    return tuple(sorted(_ZOO))


def zoo_entry(name: str) -> ZooEntry:
    """Return the entry of `name`.

    Raises:
        ConfigError: no such network; names the closest one.
    """
    if name not in _ZOO:
        raise ConfigError(
            f"The zoo has no network {name!r}.{closest(name, zoo_names())} It has: {', '.join(zoo_names())}."
        )
    return _ZOO[name]


def build_zoo(name: str, **options: Any) -> nn.Module:
    """Build a zoo network; its attribute `input_shape` says (channels, height, width) to feed it.

    Raises:
        ConfigError: unknown name, option or value.
    """
    entry = zoo_entry(name)
    for option in options:
        if option not in entry.options():
            raise ConfigError(
                f"zoo:{name} has no option {option!r}.{closest(option, entry.options())} "
                f"It takes: {', '.join(entry.options())}."
            )
        value = options[option]
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not 0 < value < math.inf:
            raise ConfigError(f"zoo:{name}: {option}={value!r} does not fit: give a finite number above 0.")
    model = entry.build(**options)
    channels, height, width = entry.input_shape
    if "image_size" in options:
        height, width = square(options["image_size"])
    model.input_shape = (int(options.get("in_channels", channels)), height, width)  # type: ignore[assignment]
    return model
