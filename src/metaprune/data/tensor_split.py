"""Images in memory: a uint8 tensor that moves to the device once and is normalised batch by batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from metaprune.core.errors import DataError
from metaprune.core.rng import Rng
from metaprune.data.batching import index_batches, normalise, require_rng, shift_and_flip


class TensorSplit:
    """A split held as uint8 images [N, C, H, W] and int64 labels [N].

    Args:
        mean, std: one per channel, for pixels in 0..1.
        pad: pixels of black around an image that the random crop of `augment` may reach.
        flip: `augment` mirrors half of the images; off for digits and letters.

    Raises:
        DataError: wrong type, shape or number of channels.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        pad: int = 4,
        flip: bool = True,
    ):
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise DataError(f"images must be uint8 [N, C, H, W], not {images.dtype} {tuple(images.shape)}.")
        if labels.ndim != 1 or len(labels) != len(images):
            raise DataError(f"{len(images)} images need labels of shape [{len(images)}], not {tuple(labels.shape)}.")
        if not len(mean) == len(std) == images.shape[1] or min(std) <= 0:
            raise DataError(f"{images.shape[1]} channels need as many means and positive stds, not {mean} and {std}.")
        self.images = images
        self.labels = labels.long()
        self.mean = tuple(float(m) for m in mean)
        self.std = tuple(float(s) for s in std)
        self.pad = pad
        self.flip = flip
        self._resident: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self,
        batch_size: int,
        *,
        device: str | torch.device = "cpu",
        rng: Rng | None = None,
        augment: bool = False,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Split.batches`. `augment` is a random crop with padding and (`flip`) a mirror; it needs `rng`.

        The images stay on `device` after the first call; order and augmentation are the same on every device.
        """
        require_rng(augment, rng)
        images, labels = self._on(torch.device(device))
        draws = None
        if augment and rng is not None:
            draws = torch.rand(len(self), 3, generator=rng.child("augment").torch()).to(images.device)
        for chunk in index_batches(len(self), batch_size, rng, drop_last):
            chosen = chunk.to(images.device)
            batch = images[chosen]
            if draws is not None:
                batch = shift_and_flip(batch, draws[chosen], self.pad, self.flip)
            yield normalise(batch, self.mean, self.std), labels[chosen]

    def subset(self, indices: Tensor | Sequence[int]) -> TensorSplit:
        """Copy the samples at `indices`, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.long)
        return TensorSplit(self.images[chosen], self.labels[chosen], self.mean, self.std, self.pad, self.flip)

    def take(self, count: int) -> TensorSplit:
        """Take the first `count` samples, or all where there are fewer."""
        return self.subset(range(min(count, len(self))))

    def digest(self) -> str:
        """SHA-256 over pixels, labels and normalisation, as hexadecimal."""
        content = hashlib.sha256(repr((tuple(self.images.shape), self.mean, self.std)).encode())
        content.update(self.images.contiguous().numpy().data)
        content.update(self.labels.contiguous().numpy().data)
        return content.hexdigest()

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device.type == "cpu":
            return self.images, self.labels
        if device not in self._resident:
            self._resident[device] = (self.images.to(device), self.labels.to(device))
        return self._resident[device]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_resident": {}}  # copies and worker processes move their own
