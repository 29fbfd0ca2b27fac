"""Data sets in `.npz` files: plain uint8 images, or JPEG files packed one after another. Never a pickle."""

from __future__ import annotations

import io
import math
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from metaprune.core.errors import DataError
from metaprune.data.arrays import Arrays, as_images, as_labels

_KEYS = (
    "images + labels; train_images + train_labels (and test_..., val_...); or train_jpeg + train_offsets + train_labels"
)
_IMAGE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_npz(file: str | Path) -> Arrays:
    """Read an `.npz`: see `load_data` for its keys. `classes` and `groups` are optional.

    Raises:
        DataError: missing or damaged file, other keys, object arrays, images or labels that do not fit.
    """
    path = Path(file)
    if not path.is_file():
        raise DataError(f"npz:{path} does not exist: check the path.")
    try:
        if not zipfile.is_zipfile(path):
            raise DataError(f"npz:{path} is not a readable npz file: save with numpy.savez and the keys {_KEYS}.")
        with np.load(path, allow_pickle=False) as content:
            _require_size(path)
            arrays = {key: content[key] for key in content.files}
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"npz:{path} cannot be read without pickle ({error}): save plain number arrays.") from error
    except Exception as error:  # damaged archives end in errors of zip, of its compressions, or without memory
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        raise DataError(f"npz:{path} is not a readable npz file ({reason}): fetch or save it again.") from error
    parts = {part: pair for part in ("train", "val", "test") if (pair := _part(arrays, part, path)) is not None}
    if "train" not in parts:
        raise DataError(f"npz:{path} has the keys {sorted(arrays)}; it needs {_KEYS}.")
    names, groups = arrays.get("classes"), arrays.get("groups")
    if names is not None and names.ndim != 1:
        raise DataError(f"npz:{path}: classes have shape {names.shape}; give a list of names.")
    count = len(parts["train"][1])
    if groups is not None and groups.shape != (count,):
        raise DataError(f"npz:{path}: groups have shape {groups.shape}; give one per training sample, ({count},).")
    return Arrays(parts, () if names is None else tuple(str(c) for c in names.tolist()), groups)


def _require_size(path: Path) -> None:
    """Compare what the headers ask for with what the members hold, before anything is allocated.

    Raises:
        DataError: an array of other bytes than its member.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
                asked, there = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
            if not dtype.hasobject and asked != there:
                raise DataError(
                    f"npz:{path}: {member.filename} is of shape {shape}, which its {there:,} bytes do not hold: the "
                    "file is damaged, fetch or save it again."
                )


def _part(arrays: dict[str, np.ndarray], part: str, path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    origin = f"npz:{path} ({part})"
    prefix = part + "_"
    if part == "train" and "images" in arrays:
        prefix = ""
    if prefix + "images" in arrays:
        images = as_images(arrays[prefix + "images"], origin)
    elif prefix + "jpeg" in arrays and prefix + "offsets" in arrays:
        images = decode_packed(arrays[prefix + "jpeg"], arrays[prefix + "offsets"], origin)
    else:
        return None
    if prefix + "labels" not in arrays:
        raise DataError(f"{origin}: key {prefix}labels is missing: add an int array [samples], or use an image folder.")
    return images, as_labels(arrays[prefix + "labels"], len(images), origin)


def decode_packed(packed: np.ndarray, offsets: np.ndarray, origin: str) -> np.ndarray:
    """Decode image files that lie one after another in a byte array.

    Args:
        packed: uint8 [total bytes].
        offsets: int [N + 1]; file i is `packed[offsets[i]:offsets[i + 1]]`.

    Returns:
        uint8 [N, 3, H, W].

    Raises:
        DataError: offsets beyond the bytes, a damaged image, images of different sizes.
    """
    if packed.ndim != 1 or offsets.ndim != 1 or offsets.dtype.kind not in "iu":
        raise DataError(
            f"{origin}: packed bytes {packed.dtype} {packed.shape} and offsets {offsets.dtype} {offsets.shape} do not "
            "fit: give uint8 [bytes] and integers [images + 1]."
        )
    bounds = offsets.tolist()
    if (
        packed.dtype != np.uint8
        or len(bounds) < 2
        or bounds[0] < 0
        or bounds != sorted(bounds)
        or bounds[-1] > len(packed)
    ):
        raise DataError(f"{origin}: offsets do not fit the packed bytes: the file is damaged, fetch it again.")
    images: np.ndarray | None = None
    for index, (start, end) in enumerate(pairwise(bounds)):
        try:
            with Image.open(io.BytesIO(packed[start:end].tobytes())) as image:
                pixels = np.asarray(image.convert("RGB"))
        except _IMAGE_ERRORS as error:
            raise DataError(f"{origin}: image {index} cannot be decoded ({error}): fetch the file again.") from error
        if images is None:
            images = np.empty((len(bounds) - 1, 3, *pixels.shape[:2]), dtype=np.uint8)
        if pixels.shape[:2] != images.shape[2:]:
            raise DataError(f"{origin}: image {index} is {pixels.shape[:2]}, the first {images.shape[2:]}.")
        images[index] = pixels.transpose(2, 0, 1)
    assert images is not None  # at least one file, checked above
    return images
