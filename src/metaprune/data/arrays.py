"""A data set as plain arrays, and the one way from arrays to `Data`: split, convert, normalise, limit."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from metaprune.core.errors import ConfigError, DataError
from metaprune.core.rng import Rng
from metaprune.data.splits import SPLIT_RNG, TEST_FRACTION, VAL_FRACTION, hold_out, stratified_limit, without
from metaprune.data.tensor_split import TensorSplit
from metaprune.data.types import Data

# Colour images use the constants that published weights were trained with, so that those weights can be loaded.
RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_RESIZE_CHUNK = 2048
_LARGEST_LABEL = 2**31 - 1
_LARGEST_SIDE = 16_384
_FEW = 1000  # classes that may have no sample


@dataclass(frozen=True)
class Options:
    """How arrays become `Data`; see `load_data`."""

    seed: int = 0
    limit: int | None = None
    image_size: int | None = None
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    tokenizer: str | None = None
    sequence_length: int | None = None
    model_tokenizer: str | None = None

    def require_text(self, name: str) -> None:
        """Raises ConfigError for options that do nothing with text."""
        self._require(name, "text", ("image_size", "channels", "mean", "std"))

    def require_images(self, name: str) -> None:
        """Raises ConfigError for options that do nothing with images."""
        self._require(name, "images", ("tokenizer", "sequence_length"))

    def _require(self, name: str, kind: str, others: tuple[str, ...]) -> None:
        given = [other for other in others if getattr(self, other) is not None]
        if given:
            raise ConfigError(
                f"{name} holds {kind}, and {', '.join(given)} {'is' if len(given) == 1 else 'are'} of no "
                f"use there: leave {'it' if len(given) == 1 else 'them'} out"
            )


@dataclass(frozen=True)
class Arrays:
    """Images uint8 [N, C, H, W] and labels int64 [N] of the parts that the source itself separates.

    Attributes:
        parts: "train" and optionally "val" and "test".
        groups: [N of train]: samples that must stay on one side of every split.
    """

    parts: dict[str, tuple[np.ndarray, np.ndarray]]
    classes: tuple[str, ...] = ()
    groups: np.ndarray | None = field(default=None, repr=False)


def as_images(array: np.ndarray, origin: str) -> np.ndarray:
    """uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] (C 1 or 3) to [N, C, H, W].

    Raises:
        DataError: another type or shape; names `origin`.
    """
    if array.dtype != np.uint8:
        raise DataError(f"{origin}: images are {array.dtype}; save them as uint8 in 0..255.")
    if array.ndim >= 3 and 0 in array.shape:
        raise DataError(f"{origin}: images have shape {array.shape}: give at least one, of at least one pixel.")
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return array
    if array.ndim == 4 and array.shape[3] in (1, 3):
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    raise DataError(
        f"{origin}: images have shape {array.shape}; use [N, H, W], [N, H, W, C] or [N, C, H, W], C 1 or 3."
    )


def as_labels(array: np.ndarray, count: int, origin: str) -> np.ndarray:
    """Labels as int64 [count].

    Raises:
        DataError: not `count` non-negative integers; names the first that is not.
    """
    if array.dtype.kind not in "iu" or array.shape != (count,):
        raise DataError(
            f"{origin}: labels are {array.dtype} {array.shape}; use non-negative integers of shape ({count},)."
        )
    odd = np.flatnonzero((array < 0) | (array > _LARGEST_LABEL))
    if len(odd):
        raise DataError(
            f"{origin}: label {array[odd[0]]} of sample {odd[0]} is no class ({len(odd)} of {count} are none): use "
            "non-negative integers, and leave out samples without a label."
        )
    return array.astype(np.int64)


def split_parts(arrays: Arrays) -> dict[str, np.ndarray | None]:
    """Indices into the training part for "train", "val", "test"; None where the source gives that part itself.

    "test" is not among them where the source gives "val" alone: that is what figures are then of.
    """
    labels = arrays.parts["train"][1]
    rest = np.arange(len(labels))
    result: dict[str, np.ndarray | None] = {"val": None, "test": None}
    for part, fraction in (("test", TEST_FRACTION), ("val", VAL_FRACTION)):
        if part in arrays.parts:
            continue
        if part == "test" and "val" in arrays.parts:
            del result["test"]
            continue
        # A fraction of the whole, not of what the test split left over.
        share = min(0.5, fraction * len(labels) / len(rest))
        groups = None if arrays.groups is None else arrays.groups[rest]
        held = hold_out(labels[rest], share, SPLIT_RNG.child(part), groups)
        result[part] = rest[held]
        rest = rest[without(len(rest), held)]
    result["train"] = rest
    return result


def to_data(name: str, arrays: Arrays, options: Options, *, flip: bool = True) -> Data:
    """Split, resize, convert, normalise; see `load_data` for the rules.

    Raises:
        DataError: an empty part, labels beyond the classes, parts of different shape.
    """
    options.require_images(name)
    classes = arrays.classes or _numbered(arrays)
    parts = split_parts(arrays)
    chosen = {part: _pick(name, part, arrays, indices, len(classes)) for part, indices in parts.items()}
    converted = {
        part: convert(torch.from_numpy(images), options.image_size, options.channels)
        for part, (images, _) in chosen.items()
    }
    shapes = {part: tuple(images.shape[1:]) for part, images in converted.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"{name}: parts differ in shape ({shapes}): pass image_size= and channels=.")
    mean, std = normalisation(converted["train"], options)
    splits = {
        part: TensorSplit(converted[part], torch.from_numpy(chosen[part][1]), mean, std, flip=flip) for part in parts
    }
    if options.limit is not None:
        limited = stratified_limit(chosen["train"][1], options.limit, Rng(options.seed, ("data", "limit")))
        splits["train"] = splits["train"].subset(torch.from_numpy(limited))
    digest = hashlib.sha256("".join(split.digest() for split in splits.values()).encode()).hexdigest()
    return Data(
        name,
        splits["train"],
        splits["val"],
        splits.get("test"),
        len(classes),
        shapes["train"],
        classes,
        "sha256:" + digest,
        carved=carved_parts(parts),
    )


def carved_parts(parts: Mapping[str, np.ndarray | None]) -> tuple[str, ...]:
    """Name the splits that `split_parts` cut out of the training part."""
    return tuple(part for part, indices in parts.items() if part != "train" and indices is not None)


def _pick(
    name: str, part: str, arrays: Arrays, indices: np.ndarray | None, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one part, in a fixed random order; `indices` are into the training part, None = given."""
    images, labels = arrays.parts["train" if indices is not None else part]
    selected = np.arange(len(labels)) if indices is None else indices
    if len(selected) == 0:
        raise DataError(f"{name}: the {part} split is empty: give more samples.")
    if labels.max() >= num_classes:
        raise DataError(
            f"{name}: label {labels.max()} of the {part} split has no class among {num_classes}: check labels and "
            "classes."
        )
    # Sources are often sorted by class; the first n samples of a split should be a fair draw.
    selected = SPLIT_RNG.child("shuffle", part).numpy().permutation(selected)
    return images[selected], labels[selected]


def _numbered(arrays: Arrays) -> tuple[str, ...]:
    """Name classes by number where the source gives no names. A bit flip in a label must not make millions of them."""
    top = max(int(labels.max()) for _, labels in arrays.parts.values() if len(labels))
    return numbered_classes(top, sum(len(labels) for _, labels in arrays.parts.values()))


def numbered_classes(top: int, samples: int) -> tuple[str, ...]:
    """Name the classes 0 to `top`.

    Raises:
        DataError: more classes than `samples`.
    """
    if top >= max(samples, _FEW):
        raise DataError(
            f"label {top} would make {top + 1:,} classes of {samples:,} samples: mend the label, or name the classes "
            "(key `classes` of an npz, num_classes= of as_data)."
        )
    return tuple(str(i) for i in range(top + 1))


def convert(images: Tensor, image_size: int | None, channels: int | None) -> Tensor:
    """uint8 [N, C, H, W] at another size (bilinear with antialias, square) or number of channels (1 or 3).

    Raises:
        DataError: another number of channels, or a size below 1.
    """
    if channels not in (None, 1, 3):
        raise DataError(f"channels={channels}: give 1 (grey) or 3 (colour).")
    if image_size is not None:
        require_image_size(image_size, len(images) * (channels or images.shape[1]))
    if channels == 1 and images.shape[1] == 3:
        weights = torch.tensor(_LUMA).view(1, 3, 1, 1)
        parts = [(part.float() * weights).sum(1, keepdim=True).round() for part in images.split(_RESIZE_CHUNK)]
        images = torch.cat([part.clamp(0, 255).to(torch.uint8) for part in parts])
    if image_size is not None and tuple(images.shape[2:]) != (image_size, image_size):
        size = (image_size, image_size)
        resized = [
            torch.nn.functional.interpolate(part.float(), size, mode="bilinear", antialias=True, align_corners=False)
            for part in images.split(_RESIZE_CHUNK)
        ]
        images = torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in resized])
    if channels == 3 and images.shape[1] == 1:
        images = images.repeat(1, 3, 1, 1)
    return images


def require_image_size(size: int, planes: int = 0) -> None:
    """Raises DataError for an image size that no image has, or that `planes` of do not fit into this machine."""
    if not 1 <= size <= _LARGEST_SIDE:
        raise DataError(f"data.image_size={size}: give pixels from 1 to {_LARGEST_SIDE:,}.")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if planes * size**2 > memory:
        raise DataError(
            f"data.image_size={size}: the images would take {planes * size**2 / 2**30:,.0f} GB, more than this machine "
            "has: give a smaller size, or an image folder, which is decoded on the way."
        )


def normalisation(images: Tensor, options: Options) -> tuple[Sequence[float], Sequence[float]]:
    """(mean, std) for pixels in 0..1: as asked, else the RGB constants, else measured on grey training images."""
    if options.mean is not None and options.std is not None:
        return options.mean, options.std
    if options.mean is not None or options.std is not None:
        raise DataError("mean and std go together: pass both or none.")
    if images.shape[1] == 3:
        return RGB_MEAN, RGB_STD
    counts = torch.bincount(images.flatten(), minlength=256).double() if images.numel() else torch.ones(256).double()
    values = torch.arange(256).double() / 255
    mean = float((counts * values).sum() / counts.sum())
    std = float((counts * (values - mean) ** 2).sum() / counts.sum()) ** 0.5
    return (round(mean, 4),), (round(max(std, 1e-2), 4),)
