"""Image folders: DIR/train/CLASS/*, with DIR/val and DIR/test where they exist, or DIR/CLASS/*."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from metaprune.core.errors import DataError
from metaprune.data.image_source import ImageSource

_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
_PARTS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def open_folder(folder: str | Path) -> ImageSource:
    """Images by class folder; the classes are the folder names, sorted.

    Raises:
        DataError: no such folder, no class folders, no images, or a class that is in val or test but not in train.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"imagefolder:{root} is not a folder: check the path.")
    roots = {
        part: image_paths
        for part, names in _PARTS.items()
        if (image_paths := next((root / n for n in names if (root / n).is_dir()), None)) is not None
    }
    if "train" not in roots:
        roots = {"train": root}
    classes = tuple(sorted(p.name for p in roots["train"].iterdir() if p.is_dir() and not p.name.startswith(".")))
    if not classes:
        raise DataError(f"imagefolder:{roots['train']} has no class folders: put images into {root}/train/CLASS/.")
    files: list[Path] = []
    parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for part, inner in roots.items():
        labels: list[int] = []
        start = len(files)
        for directory in sorted(p for p in inner.iterdir() if p.is_dir() and not p.name.startswith(".")):
            if directory.name not in classes:
                raise DataError(f"imagefolder:{directory} is a class that {roots['train']} does not have.")
            image_paths = sorted(p for p in directory.rglob("*") if p.suffix.lower() in _SUFFIXES)
            if part == "train" and not image_paths:
                raise DataError(
                    f"imagefolder:{directory} holds no images ({', '.join(sorted(_SUFFIXES))}): a class needs some; "
                    "put them there, or delete the folder."
                )
            files += image_paths
            labels += [classes.index(directory.name)] * len(image_paths)
        if not labels:  # of val or test
            raise DataError(f"imagefolder:{inner} holds no images ({', '.join(sorted(_SUFFIXES))}).")
        parts[part] = (np.arange(start, len(files)), np.array(labels, dtype=np.int64))

    def open_image(key: int) -> Image.Image:
        return Image.open(files[key])

    return ImageSource(open_image, lambda key: str(files[key]), parts, classes)
