"""Pieces that the zoo's networks share: initialisation and the width rules of the papers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from metaprune.core.errors import ConfigError


def init_cnn(model: nn.Module) -> None:
    """Kaiming-normal convolutions (fan out, ReLU gain), unit BatchNorm, zero biases of convolutions; in place.

    Linear layers keep PyTorch's default. Draws from torch's global generator (see `Rng.torch_global`).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def scale_floor(channels: int, width: float) -> int:
    """Compute `floor(channels * width)`, at least 1: the rule of MobileNetV1 and of the scaled ResNets."""
    return max(1, int(channels * width))


def scale_by_eight(channels: float, width: float = 1.0) -> int:
    """Nearest multiple of 8 that loses no more than 10%, at least 8: the rule of MobileNetV2."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def explicit_widths(widths: Sequence[int] | None, default: Sequence[int], network: str) -> tuple[int, ...]:
    """Check `widths` against the length of `default`; None gives `default`.

    Raises:
        ConfigError: wrong number of widths, or one that is not a positive integer.
    """
    if widths is None:
        return tuple(default)
    chosen = tuple(int(w) for w in widths)
    if len(chosen) != len(default) or any(w < 1 for w in chosen):
        raise ConfigError(
            f"{network} takes {len(default)} positive widths like {list(default)}, not {list(widths)}: "
            "give one width per entry of that list."
        )
    return chosen


def square(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width in pixels from one number or a pair."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return int(height), int(width)
