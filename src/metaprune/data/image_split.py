"""Images that are decoded when they are needed: folders and Hub data sets too large for memory."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metaprune.core.errors import DataError
from metaprune.core.rng import Rng
from metaprune.data.batching import index_batches, normalise, require_rng

OpenImage = Callable[[int], Image.Image]

IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_CROP_FROM_PIXELS = 128  # larger images are photographs: resize a little larger, cut the centre out
_CROP_FRACTION = 0.875
_AREA, _ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # Inception's random resized crop


def centre_image(image: Image.Image, size: int, mode: str) -> np.ndarray:
    """Resize the shorter side and cut the centre out: uint8 [C, size, size].

    From 128 pixels on the shorter side is made size / 0.875, the usual margin of photographs.
    """
    image = image.convert(mode)
    if image.size != (size, size):
        shorter = round(size / _CROP_FRACTION) if size >= _CROP_FROM_PIXELS else size
        scale = shorter / min(image.size)
        wide, high = max(size, round(image.width * scale)), max(size, round(image.height * scale))
        image = image.resize((wide, high), Image.Resampling.BILINEAR)
        left, top = (wide - size) // 2, (high - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return channels_first(image)


def random_image(image: Image.Image, size: int, mode: str, draws: Sequence[float], flip: bool) -> np.ndarray:
    """Crop a random area and aspect, resize to [C, size, size], mirror in half of the cases.

    Args:
        draws: five numbers in [0, 1): area, aspect, column, row, mirror.
    """
    image = image.convert(mode)
    area = image.width * image.height * (_AREA[0] + draws[0] * (_AREA[1] - _AREA[0]))
    aspect = math.exp(math.log(_ASPECT[0]) + draws[1] * math.log(_ASPECT[1] / _ASPECT[0]))
    wide = min(image.width, max(1, round(math.sqrt(area * aspect))))
    high = min(image.height, max(1, round(math.sqrt(area / aspect))))
    left, top = int(draws[2] * (image.width - wide + 1)), int(draws[3] * (image.height - high + 1))
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + wide, top + high))
    if flip and draws[4] < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return channels_first(image)


def channels_first(image: Image.Image) -> np.ndarray:
    """uint8 [C, H, W] of a grey or RGB image."""
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


class ImageSplit:
    """A split whose images are opened by key and decoded by threads, batch after batch.

    Args:
        open_image: image by key; any error of Pillow becomes a DataError with `name_of(key)`.
        keys: [N] passed to `open_image`.
        labels: int64 [N].
        size: pixels of both sides after resizing.
        mode: "RGB" or "L".
        name_of: what to call an image in an error.
        flip: whether augmentation mirrors.
        workers: decoding threads.
    """

    def __init__(
        self,
        open_image: OpenImage,
        keys: np.ndarray,
        labels: np.ndarray,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        size: int,
        mode: str,
        name_of: Callable[[int], str] = str,
        flip: bool = True,
        workers: int = 4,
    ):
        self.open_image = open_image
        self.keys = keys
        self.labels = torch.as_tensor(labels, dtype=torch.long)
        self.mean, self.std = tuple(mean), tuple(std)
        self.size, self.mode, self.name_of, self.flip, self.workers = size, mode, name_of, flip, workers

    def __len__(self) -> int:
        return len(self.labels)

    def decode(self, index: int, draws: Sequence[float] | None = None) -> np.ndarray:
        """Sample `index` as uint8 [C, size, size]; with five `draws` a random crop.

        Raises:
            DataError: the image is damaged; names it.
        """
        key = int(self.keys[index])
        try:
            image = self.open_image(key)
            if draws is None:
                return centre_image(image, self.size, self.mode)
            return random_image(image, self.size, self.mode, draws, self.flip)
        except IMAGE_ERRORS as error:
            raise DataError(
                f"Image {self.name_of(key)} cannot be decoded ({error}): remove it, or pass skip_corrupt=True "
                "(--set data.skip_corrupt=true on the command line)."
            ) from error

    def batches(
        self,
        batch_size: int,
        *,
        device: str | torch.device = "cpu",
        rng: Rng | None = None,
        augment: bool = False,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Split.batches`. `augment` is a random resized crop and a mirror. The next batch is decoded meanwhile."""
        require_rng(augment, rng)
        draws: list[list[float]] | None = None
        if augment and rng is not None:
            draws = torch.rand(len(self), 5, generator=rng.child("augment").torch()).tolist()
        chunks = index_batches(len(self), batch_size, rng, drop_last)
        with ThreadPoolExecutor(max(1, self.workers)) as pool:

            def submit(chunk: Tensor) -> list:
                indices = chunk.tolist()
                return [pool.submit(self.decode, i, None if draws is None else draws[i]) for i in indices]

            current = next(chunks)
            pending = submit(current)
            while True:
                following = next(chunks, None)
                ahead = None if following is None else submit(following)
                pixels = torch.from_numpy(np.stack([job.result() for job in pending])).to(device)
                yield normalise(pixels, self.mean, self.std), self.labels[current].to(device)
                if following is None or ahead is None:
                    return
                current, pending = following, ahead

    def subset(self, indices: Sequence[int]) -> ImageSplit:
        """Take the samples at `indices`, in that order."""
        chosen = copy.copy(self)
        chosen.keys, chosen.labels = self.keys[np.asarray(indices)], self.labels[torch.as_tensor(indices)]
        return chosen

    def digest(self) -> str:
        """SHA-256 over keys' names, labels and preprocessing; pixels are not read."""
        facts = (self.size, self.mode, self.mean, self.std)
        content = hashlib.sha256(repr(facts).encode())
        for key, label in zip(self.keys.tolist(), self.labels.tolist(), strict=True):
            content.update(f"{self.name_of(key)}\0{label}\n".encode())
        return content.hexdigest()
