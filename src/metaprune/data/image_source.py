"""From images that can be opened by key to `Data`: in memory when they fit, else decoded on the way."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from metaprune.core.errors import DataError
from metaprune.core.rng import Rng
from metaprune.data.arrays import (
    RGB_MEAN,
    RGB_STD,
    Arrays,
    Options,
    carved_parts,
    require_image_size,
    split_parts,
    to_data,
)
from metaprune.data.image_split import IMAGE_ERRORS, ImageSplit, OpenImage
from metaprune.data.splits import SPLIT_RNG, stratified_limit
from metaprune.data.types import Data

_IN_MEMORY_BYTES = 2 << 30
_NAMED = 8  # corrupt images that the warning names
_GREY_MEAN, _GREY_STD = (0.5,), (0.25,)  # where measuring would mean decoding everything


@dataclass(frozen=True)
class ImageSource:
    """Images by key with labels, by part ("train", and "val", "test" where the source gives them)."""

    open_image: OpenImage
    name_of: Callable[[int], str]
    parts: dict[str, tuple[np.ndarray, np.ndarray]]  # keys int64 [N], labels int64 [N]
    classes: tuple[str, ...]


def image_source_to_data(
    name: str, source: ImageSource, options: Options, *, skip_corrupt: bool = False, workers: int = 4
) -> Data:
    """Make `Data` from images by key; see `load_data`.

    Raises:
        DataError: a corrupt image (unless skipped), images of several sizes without `image_size`, an empty part.
    """
    options.require_images(name)
    if options.image_size is not None:
        require_image_size(options.image_size)
    first = source.parts["train"][0]
    if len(first) == 0:
        raise DataError(f"{name} has no training images.")
    size, mode = _size_and_mode(name, source, options)
    if skip_corrupt:
        source = _without_corrupt(name, source, size, mode, workers)
    count = sum(len(keys) for keys, _ in source.parts.values())
    if count * size * size * (1 if mode == "L" else 3) <= _IN_MEMORY_BYTES:
        parts = {
            part: (_decode_all(source, keys, labels, size, mode, workers), labels)
            for part, (keys, labels) in source.parts.items()
        }
        return to_data(name, Arrays(parts, source.classes), options)
    return _lazy_data(name, source, options, size, mode, workers)


def _split(source: ImageSource, keys: np.ndarray, labels: np.ndarray, size: int, mode: str, workers: int) -> ImageSplit:
    """A split for decoding only: its normalisation is not used."""
    ones = (1.0,) * (1 if mode == "L" else 3)
    return ImageSplit(
        source.open_image, keys, labels, ones, ones, size=size, mode=mode, name_of=source.name_of, workers=workers
    )


def _decode_all(
    source: ImageSource, keys: np.ndarray, labels: np.ndarray, size: int, mode: str, workers: int
) -> np.ndarray:
    split = _split(source, keys, labels, size, mode, workers)
    images = np.empty((len(keys), 1 if mode == "L" else 3, size, size), dtype=np.uint8)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for index, pixels in enumerate(pool.map(split.decode, range(len(keys)))):
            images[index] = pixels
    return images


def _size_and_mode(name: str, source: ImageSource, options: Options) -> tuple[int, str]:
    """Pixels of a side and Pillow mode: as asked, else of the images themselves (read from their headers)."""
    if options.channels not in (None, 1, 3):
        raise DataError(f"channels={options.channels}: give 1 (grey) or 3 (colour).")
    asked_mode = {1: "L", 3: "RGB", None: None}[options.channels]
    if options.image_size is not None and asked_mode is not None:
        return options.image_size, asked_mode
    sizes: set[tuple[int, int]] = set()
    grey = True
    for keys, _ in source.parts.values():
        for key in keys.tolist():
            try:
                image = source.open_image(key)
            except IMAGE_ERRORS:
                continue  # reported, or skipped, by whoever decodes it
            sizes.add(image.size)
            grey = grey and image.mode in ("1", "L")
            if options.image_size is not None and len(sizes) and not grey:
                break
    size = options.image_size
    if size is None:
        if len(sizes) != 1 or len(set(next(iter(sizes)))) != 1:
            shown = ", ".join(f"{w}x{h}" for w, h in sorted(sizes)[:3])
            raise DataError(f"{name}: images are not all square and of one size ({shown}, ...): pass image_size=.")
        size = next(iter(sizes))[0]
    return size, asked_mode or ("L" if grey else "RGB")


def _without_corrupt(name: str, source: ImageSource, size: int, mode: str, workers: int) -> ImageSource:
    bad: list[str] = []
    parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for part, (keys, labels) in source.parts.items():
        split = _split(source, keys, labels, size, mode, workers)

        def readable(index: int, split: ImageSplit = split) -> bool:
            try:
                split.decode(index)
            except DataError:
                return False
            return True

        with ThreadPoolExecutor(max(1, workers)) as pool:
            good = np.fromiter(pool.map(readable, range(len(keys))), dtype=bool, count=len(keys))
        bad += [source.name_of(int(key)) for key in keys[~good]]
        parts[part] = (keys[good], labels[good])
    if bad:
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        warnings.warn(
            f"{name}: skipped {len(bad)} corrupt image{'s'[: len(bad) > 1]}: {', '.join(bad[:_NAMED])}{more}",
            stacklevel=2,
        )
    return ImageSource(source.open_image, source.name_of, parts, source.classes)


def _lazy_data(name: str, source: ImageSource, options: Options, size: int, mode: str, workers: int) -> Data:
    mean, std = (RGB_MEAN, RGB_STD) if mode == "RGB" else (_GREY_MEAN, _GREY_STD)
    if options.mean is not None and options.std is not None:
        mean, std = options.mean, options.std
    # Only labels matter for splitting; keys stand in for images.
    indices = split_parts(Arrays(source.parts, source.classes))
    splits: dict[str, ImageSplit] = {}
    for part in indices:
        given = indices[part]
        keys, labels = source.parts["train" if given is not None else part]
        selected = (
            SPLIT_RNG.child("shuffle", part).numpy().permutation(np.arange(len(labels)) if given is None else given)
        )
        if part == "train" and options.limit is not None:
            selected = selected[stratified_limit(labels[selected], options.limit, Rng(options.seed, ("data", "limit")))]
        splits[part] = ImageSplit(
            source.open_image,
            keys[selected],
            labels[selected],
            mean,
            std,
            size=size,
            mode=mode,
            name_of=source.name_of,
            workers=workers,
        )
    digest = hashlib.sha256("".join(split.digest() for split in splits.values()).encode()).hexdigest()
    shape = (1 if mode == "L" else 3, size, size)
    return Data(
        name,
        splits["train"],
        splits["val"],
        splits.get("test"),
        len(source.classes),
        shape,
        source.classes,
        "names:" + digest,
        carved=carved_parts(indices),
    )
