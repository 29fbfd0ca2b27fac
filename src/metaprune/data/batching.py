"""Order, normalisation and augmentation of image batches: the steps that splits in memory and on disk share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from metaprune.core.errors import DataError
from metaprune.core.rng import Rng


def index_batches(count: int, batch_size: int, rng: Rng | None, drop_last: bool) -> Iterator[Tensor]:
    """int64 index tensors on the CPU: in order, or in the order of `rng`.

    The order is drawn on the CPU so that it does not depend on the device.

    Raises:
        DataError: batch size below 1, or no batch at all.
    """
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}: give at least 1.")
    if count == 0 or (drop_last and count < batch_size):
        raise DataError(
            f"{count} samples make no batch of {batch_size}{' with drop_last' if drop_last else ''}: "
            "use a smaller batch or more samples."
        )
    order = torch.arange(count) if rng is None else torch.randperm(count, generator=rng.child("order").torch())
    for chunk in order.split(batch_size):
        if len(chunk) == batch_size or not drop_last:
            yield chunk


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [B, C, H, W] in 0..255 to float32 `(x / 255 - mean) / std`, per channel."""
    shape = (1, -1, 1, 1)
    offset = torch.tensor(mean, device=images.device, dtype=torch.float32).mul(255).view(shape)
    scale = torch.tensor(std, device=images.device, dtype=torch.float32).mul(255).view(shape)
    return (images.float() - offset) / scale


def shift_and_flip(images: Tensor, draws: Tensor, pad: int, flip: bool) -> Tensor:
    """Crop each image at its own place out of itself padded with black, and mirror some; same shape.

    Args:
        images: [B, C, H, W].
        draws: [B, 3] uniform in [0, 1) on the images' device: row, column, mirror (below one half).
        pad: pixels of padding on each side.
    """
    batch, channels, height, width = images.shape
    device = images.device
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    offsets = (draws[:, :2] * (2 * pad + 1)).long()
    rows = offsets[:, 0:1] + torch.arange(height, device=device)
    columns = offsets[:, 1:2] + torch.arange(width, device=device)
    if flip:
        columns = torch.where(draws[:, 2:3] < 0.5, columns.flip(1), columns)
    sample = torch.arange(batch, device=device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(1, -1, 1, 1)
    return padded[sample, channel, rows.view(batch, 1, height, 1), columns.view(batch, 1, 1, width)]


def require_rng(augment: bool, rng: Rng | None) -> None:
    """Raises DataError for `augment=True` without `rng`: there is no hidden source of randomness."""
    if augment and rng is None:
        raise DataError("augment=True needs `rng`: pass the Rng of this epoch.")
