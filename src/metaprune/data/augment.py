"""Augmentation of images by torchvision's transforms (v2), by the names the field uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from metaprune.core.errors import ConfigError, DataError
from metaprune.core.imports import import_optional
from metaprune.core.rng import Rng
from metaprune.objective.split import Split


class AugmentedSplit:
    """A split of normalised images [B, C, H, W] with more augmentation in training, all of it from the pass's `rng`.

    Args:
        rand_augment: magnitude of RandAugment in 0..30 (two operations an image; Cubuk et al., 2020), or None.
        mixup: alpha of mixup (Zhang et al., 2018), 0 leaves it out; labels become probabilities [B, classes].
        cutmix: alpha of CutMix (Yun et al., 2019), 0 leaves it out; with mixup, each batch gets one of both.
        random_erasing: share of images that lose a random rectangle (Zhong et al., 2020).

    Raises:
        ConfigError: an option out of its range. DataError: a split that holds no images.
        MissingDependencyError: torchvision is not installed.
    """

    def __init__(
        self,
        split: Any,
        num_classes: int,
        *,
        rand_augment: int | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        random_erasing: float = 0.0,
    ):
        if not hasattr(split, "mean"):
            raise DataError("augment is for images: give data of imagefolder:, npz:, hf: or builtin:")
        if rand_augment is not None and not 0 <= rand_augment <= 30:
            raise ConfigError(f"data.augment.rand_augment={rand_augment} does not fit: give a magnitude in 0..30")
        for name, value in (("mixup", mixup), ("cutmix", cutmix)):
            if value < 0:
                raise ConfigError(f"data.augment.{name}={value} does not fit: give alpha from 0 on")
        if not 0 <= random_erasing <= 1:
            raise ConfigError(f"data.augment.random_erasing={random_erasing} does not fit: give a share in 0..1")
        v2 = import_optional("torchvision.transforms.v2", "vision")
        self._split, self._num_classes = split, num_classes
        self._options = {
            "rand_augment": rand_augment,
            "mixup": mixup,
            "cutmix": cutmix,
            "random_erasing": random_erasing,
        }
        each = [] if rand_augment is None else [v2.RandAugment(magnitude=rand_augment)]
        each += [v2.RandomErasing(p=random_erasing)] if random_erasing else []
        self._each = v2.Compose(each) if each else None
        mixes = [v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []
        mixes += [v2.CutMix(alpha=cutmix, num_classes=num_classes)] if cutmix else []
        self._mix = v2.RandomChoice(mixes) if mixes else None

    @property
    def labels(self) -> Any:
        """Labels [N] of the samples."""
        return self._split.labels

    @property
    def mean(self) -> Sequence[float]:
        """Means that the images are normalised with."""
        return self._split.mean

    def __len__(self) -> int:
        return len(self._split)

    def batches(
        self,
        batch_size: int,
        *,
        device: str | torch.device = "cpu",
        rng: Rng | None = None,
        augment: bool = False,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Split.batches`."""
        given = self._split.batches(batch_size, device=device, rng=rng, augment=augment, drop_last=drop_last)
        if not augment or rng is None:
            yield from given
            return
        for number, (images, labels) in enumerate(given):
            with rng.child("augment", number).torch_global():
                if self._each is not None:
                    images = self._of_pixels(images)
                if self._mix is not None and len(images) > 1:
                    images, labels = self._mix(images, labels)
            yield images, labels

    def _of_pixels(self, images: Tensor) -> Tensor:
        """Augment every image by itself, as pixels in 0..1."""
        mean, std = (images.new_tensor(v).view(1, -1, 1, 1) for v in (self._split.mean, self._split.std))
        pixels = (images * std + mean).clamp(0, 1)
        return (torch.stack([self._each(image) for image in pixels]) - mean) / std  # type: ignore[misc]

    def subset(self, indices: Any) -> AugmentedSplit:
        """Take the samples at `indices`, in that order, with the same augmentation."""
        return AugmentedSplit(self._split.subset(indices), self._num_classes, **self._options)


def augmented(split: Split, num_classes: int, options: dict[str, Any]) -> Split:
    """Augment `split` by `AugmentedSplit`'s options; without any, return it as it is."""
    return AugmentedSplit(split, num_classes, **options) if any(options.values()) else split
