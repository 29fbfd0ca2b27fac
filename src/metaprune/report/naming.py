"""Spec strings -> the names the field writes: `zoo:resnet20` is ResNet-20, `builtin:fashion-mnist` Fashion-MNIST."""

from __future__ import annotations

import re
from typing import Any

_DATA = {
    "fashion-mnist": "Fashion-MNIST",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet": "ImageNet",
}
_MODELS = (
    (re.compile(r"resnet(\d+)"), r"ResNet-\1"),
    (re.compile(r"resnet(\d+)_cifar"), r"ResNet-\1 (CIFAR)"),
    (re.compile(r"vgg(\d+)"), r"VGG-\1"),
    (re.compile(r"vgg(\d+)_bn"), r"VGG-\1-BN"),
    (re.compile(r"vgg(\d+)_bn_imagenet"), r"VGG-\1-BN (ImageNet)"),
    (re.compile(r"mobilenet_v(\d)"), r"MobileNetV\1"),
    (re.compile(r"vit_tiny"), r"ViT-Tiny"),
    (re.compile(r"vit_micro"), r"ViT-Micro"),
    (re.compile(r"vit_b16"), r"ViT-B/16"),
    (re.compile(r"lenet"), r"LeNet"),
    (re.compile(r"mlp"), r"MLP"),
)


def pretty_model(spec: Any) -> str:
    """Readable name of a model spec; an unknown name is returned as it is, without its source and options."""
    if not spec:
        return "Model"
    name = _bare(str(spec))
    for pattern, form in _MODELS:
        if pattern.fullmatch(name):
            return pattern.sub(form, name)
    return name


def pretty_data(spec: Any) -> str:
    """Readable name of a data spec; an unknown name is returned as it is, without its source and options."""
    name = _bare(str(spec))
    return _DATA.get(name, name)


def _bare(spec: str) -> str:
    """`zoo:resnet20?num_classes=10` -> `resnet20`; a path keeps only its last part."""
    _, _, tail = spec.partition(":")
    name = re.split(r"[?@]", tail or spec, maxsplit=1)[0]
    return name.rstrip("/").rsplit("/", 1)[-1] or spec
